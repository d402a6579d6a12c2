"""Certificates for a test, and the one that a server shows."""

from __future__ import annotations

import socket
import ssl
import subprocess
from pathlib import Path


def make_certificate(folder: Path, name: str) -> None:
    """Write cert.pem, for 127.0.0.1, and its key.pem; openssl lets nobody else read the key."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip


def certificate_of(port: int, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes | None:
    context = ssl._create_unverified_context()
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain) as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True)
