"""The checks in their order: each one looks only at what the ones before it found sound.

    manifest, listing, folder, digests    is this, byte for byte, the bundle that was made?
    structure, contents, templates, SBOM  and is what it holds fit to be opened?
    signature                             and who says so?

What files hold is looked at once all of them are what the manifest says; a damaged file has its
fault already.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deployer.artifacts import MANIFEST, SIGNATURE, Manifest
from deployer.errors import Fault
from deployer.memo import DigestMemo
from deployer.progress import SILENT, Progress
from deployer.verification import signature as signatures
from deployer.verification.contents import check_contents
from deployer.verification.digests import check_digests
from deployer.verification.examined import Examined
from deployer.verification.folder import check_folder
from deployer.verification.listing import check_listing
from deployer.verification.manifest import read_manifest
from deployer.verification.reading import Unreadable
from deployer.verification.sbom import check_sbom
from deployer.verification.structure import check_structure
from deployer.verification.templates import Render, check_templates, render_apart

Authentic = Callable[[bytes, Mapping[str, str]], str | None]
"""(signature file, digest of each file) -> why the key did not make it; None where it did."""
State = Literal["none", "unchecked", "good", "bad"]


@dataclass(frozen=True)
class SignatureFound:
    """A bundle's signature: `unchecked` without a public key; `key` is the SHA-256 it names."""

    state: State = "none"
    key: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {"state": self.state, "key": self.key}


@dataclass(frozen=True)
class Checked:
    """What was found of a bundle. `digests` has the SHA-256 of each file the manifest vouches for.

    `files` and `bytes` are what was compared, the manifest not counted.
    """

    manifest: Manifest | None
    faults: tuple[Fault, ...]
    signature: SignatureFound
    digests: Mapping[str, str]
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Check:
    """How bundles are checked on this machine, and what is remembered of earlier checks.

    `render` judges a chat template; `authentic`, where a key was given, a signature. `full`
    believes no memory.
    """

    memo: DigestMemo
    examined: Examined
    render: Render = render_apart
    authentic: Authentic | None = None
    full: bool = False

    def __call__(self, root: Path, progress: Progress = SILENT) -> Checked:
        """Check the bundle in a folder; gives every fault, and raises for none of them."""
        read = read_manifest(root)
        manifest = read.manifest
        if manifest is None:
            there = os.path.lexists(root / SIGNATURE)
            return Checked(None, read.faults, SignatureFound("unchecked" if there else "none"), {})
        faults = [*read.faults, *check_listing(manifest)]
        unlisted = {fault.file for fault in faults}
        sound, missing = check_folder(root, manifest)
        sound = [entry for entry in sound if entry.path not in unlisted]
        faults += missing
        faults += check_digests(root, sound, self.memo, progress, full=self.full)
        if not faults:
            faults += self._examine(root, manifest)
        digests = {entry.path: entry.sha256 for entry in manifest.files} | {MANIFEST: read.sha256}
        found, more = self._signature(root, digests, good=not faults)
        return Checked(
            manifest,
            (*faults, *more),
            found,
            digests,
            len(sound),
            sum(entry.size for entry in sound),
        )

    def _examine(self, root: Path, manifest: Manifest) -> list[Fault]:
        """Faults of what the files hold; nothing is done for a bundle that passed before."""
        if self.examined.knows(manifest.digest) and not self.full:
            return []
        faults = check_structure(root, manifest)
        templates, wrong = check_contents(root, manifest)
        faults += wrong
        faults += check_templates(templates, self.render)
        faults += check_sbom(root, manifest)
        if not faults:
            self.examined.add(manifest.digest)
        return faults

    def _signature(
        self, root: Path, digests: Mapping[str, str], *, good: bool
    ) -> tuple[SignatureFound, list[Fault]]:
        """The signature, and what is wrong with it; a key is tried on a `good` bundle alone."""
        try:
            raw = signatures.read_signature(root)
            if raw is None:
                missing = Fault(SIGNATURE, "is missing: the bundle is not signed")
                return SignatureFound(), [missing] if self.authentic else []
            signature = signatures.parse_signature(raw)
        except Unreadable as error:
            return SignatureFound("bad"), [Fault(SIGNATURE, str(error))]
        faults = signatures.compare(signature, digests)
        if faults:
            return SignatureFound("bad", signature.key), faults
        if self.authentic is None or not good:
            return SignatureFound("unchecked", signature.key), []
        why = self.authentic(raw, digests)
        if why is not None:
            return SignatureFound("bad", signature.key), [Fault(SIGNATURE, why)]
        return SignatureFound("good", signature.key), []
