"""`model.sig`: a signature by OpenSSF model-signing, read here as far as that needs no key.

The file is a Sigstore bundle with a DSSE envelope; its payload is an in-toto statement that lists
the digest of every file. Whether the key made it, only the library can say
(`workers/verify_signature.py`). All else is here: that it is spelled in the one way there is, so
that no byte can change unseen, and that it lists what lies in the folder.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.artifacts import SIGNATURE
from deployer.errors import Fault
from deployer.verification.reading import Unreadable, parse_json, read_file

MAX_SIGNATURE = 4 << 20
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_HINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Signature:
    """What a signature says: the SHA-256 of the public key (its PEM text), and of each file."""

    key: str
    digests: Mapping[str, str]


def read_signature(root: Path) -> bytes | None:
    """The bytes of a bundle's signature, None where it has none; raises Unreadable."""
    try:
        return read_file(root / SIGNATURE, MAX_SIGNATURE)
    except Unreadable as error:
        if str(error) == "is missing":
            return None
        raise


def parse_signature(raw: bytes) -> Signature:
    """Read a signature without its key; raises Unreadable for anything but its one spelling."""
    value = parse_json(raw)
    try:
        hint = value["verificationMaterial"]["publicKey"]["hint"]
        payload = _decoded(value["dsseEnvelope"]["payload"])
        made = _decoded(value["dsseEnvelope"]["signatures"][0]["sig"])
    except (KeyError, IndexError, TypeError) as error:
        raise Unreadable("is no signature by a key") from error
    if not isinstance(hint, str) or not _HINT.fullmatch(hint):
        raise Unreadable("does not name its public key")
    if _spelled(hint, payload, made) != raw:
        raise Unreadable("is not spelled as a signature is written: it was changed")
    return Signature(hint, dict(_resources(parse_json(payload))))


def compare(signature: Signature, digests: Mapping[str, str]) -> list[Fault]:
    """Faults where a signature is not one of exactly these files (name -> SHA-256)."""
    faults = [
        Fault(SIGNATURE, f"does not cover {name}")
        for name in sorted(digests.keys() - signature.digests.keys())
    ]
    faults += [
        Fault(SIGNATURE, f"covers {name!r}, which the bundle does not hold")
        for name in sorted(signature.digests.keys() - digests.keys())
    ]
    faults += [
        Fault(SIGNATURE, f"is of another content of {name}")
        for name in sorted(digests.keys() & signature.digests.keys())
        if digests[name] != signature.digests[name]
    ]
    return faults


def _decoded(text: Any) -> bytes:
    if not isinstance(text, str):
        raise TypeError("no text")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unreadable(f"is not valid base64: {error}") from error


def _spelled(hint: str, payload: bytes, made: bytes) -> bytes:
    """A signature file as the library writes it: the only bytes that are believed.

    JSON could be spelled in many ways, and the last digit of base64 has bits that nothing reads.
    """
    document = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(made).decode(), "keyid": ""}],
        },
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _resources(statement: Any) -> Iterator[tuple[str, str]]:
    """(name, SHA-256) of every file a statement lists; raises Unreadable."""
    try:
        kinds = statement["_type"], statement["predicateType"]
        predicate = statement["predicate"]
        method = predicate["serialization"]["method"]
        listed = [(each["name"], each["digest"], each["algorithm"])
                  for each in predicate["resources"]]  # fmt: skip
    except (KeyError, TypeError) as error:
        raise Unreadable("holds no statement about files") from error
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE) or method != "files":
        raise Unreadable("holds a statement of another kind than model-signing 1 makes")
    seen = set()
    for name, digest, algorithm in listed:
        if not (isinstance(name, str) and isinstance(digest, str)) or algorithm != "sha256":
            raise Unreadable("lists a file without its SHA-256")
        if name in seen:
            raise Unreadable(f"lists {name!r} twice")
        seen.add(name)
        yield name, digest
