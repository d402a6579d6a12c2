"""`manifest.json`: bounded, in its one spelling, and with the digest and the seal it must have."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from deployer.artifacts import MANIFEST, Manifest
from deployer.errors import Fault, StoreError
from deployer.verification.reading import Unreadable, read_file

MAX_MANIFEST = 4 << 20
"""Bytes; that of the demo model has some ten thousand."""


@dataclass(frozen=True)
class Read:
    """What `manifest.json` holds, None where that cannot be told, and the SHA-256 of its bytes."""

    manifest: Manifest | None
    sha256: str = ""
    faults: tuple[Fault, ...] = ()


def read_manifest(root: Path) -> Read:
    """Read and check a bundle's manifest; whatever its bytes are, it gives faults and no error."""
    try:
        raw = read_file(root / MANIFEST, MAX_MANIFEST)
    except Unreadable as error:
        return _refused(str(error))
    try:
        manifest = Manifest.parse(raw.decode("utf-8"))
        told = tuple(Fault(MANIFEST, problem) for problem in _changes(manifest, raw))
    except StoreError as error:
        return _refused(f"cannot be used: {error.message}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return _refused(f"is no manifest: {where + ': ' if where else ''}{first['msg']}")
    except (ValueError, RecursionError) as error:
        return _refused(f"is no manifest: {error}")
    return Read(manifest, hashlib.sha256(raw).hexdigest(), told)


def _refused(problem: str) -> Read:
    return Read(None, faults=(Fault(MANIFEST, problem),))


def _changes(manifest: Manifest, raw: bytes) -> list[str]:
    """Why these are not the bytes that were written when the bundle was made."""
    problems = []
    if manifest.text().encode() != raw:
        problems.append("is not spelled as deployer writes it: it was changed")
    if manifest.true_seal() != manifest.seal:
        problems.append("does not fit its seal: it was changed after it was made")
    if manifest.true_digest() != manifest.digest:
        problems.append("does not fit its digest: it was changed after it was made")
    return problems
