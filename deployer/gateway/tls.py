"""The certificate that clients see, read again when its files change."""

from __future__ import annotations

import ssl
from pathlib import Path

from deployer.artifacts import file_identity
from deployer.errors import UsageError
from deployer.gateway.events import OnEvent


class Certificate:
    """A certificate and its key. `context` is for the server; new files change it in place."""

    def __init__(self, certificate: Path, private_key: Path, on_event: OnEvent) -> None:
        """Raises UsageError where the files cannot be used."""
        self._files = (certificate, private_key)
        self._on_event = on_event
        self._identity: tuple[str | None, ...] = self._identify()
        self.context = _new_context()
        try:
            self._load(self.context)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"the certificate {certificate} with the key {private_key} cannot be used: "
                f"{_reason(error)}",
                "gateway.certificate and gateway.private_key are PEM files that belong together; "
                "the key has no passphrase.",
            ) from error

    def use(self, certificate: Path, private_key: Path) -> None:
        """Take the certificate from other files, as `check` does."""
        if (certificate, private_key) != self._files:
            self._files = (certificate, private_key)
            self._identity = ()
            self.check()

    def check(self) -> None:
        """Take new files for new connections. Bad ones are refused by an event, once."""
        identity = self._identify()
        if identity == self._identity:
            return
        self._identity = identity
        try:
            self._load(_new_context())  # into one of its own first: half a pair must not get in
            self._load(self.context)
        except (OSError, ssl.SSLError) as error:
            self._on_event("certificate_refused", reason=_reason(error))
        else:
            self._on_event("certificate_applied")

    def _load(self, context: ssl.SSLContext) -> None:
        certificate, key = self._files
        # A passphrase that is given is not asked for on the terminal.
        context.load_cert_chain(certificate, key, password="")

    def _identify(self) -> tuple[str | None, ...]:
        found: list[str | None] = []
        for path in self._files:
            try:
                found.append(file_identity(path))
            except OSError:
                found.append(None)
        return tuple(found)


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _reason(error: OSError) -> str:
    """What was wrong, without anything of the files."""
    if isinstance(error, ssl.SSLError):
        return error.reason or "they are no PEM files that belong together"
    return error.strerror or type(error).__name__
