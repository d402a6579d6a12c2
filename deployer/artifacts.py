"""What the build leaves behind: artifacts in the store, and the bundle with its manifest.

An `Artifact` is one stage's immutable output. A `Bundle` is the self-contained folder that
`serve` uses; its `manifest.json` says what is in it, where that came from and how good it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from deployer.errors import StoreError

MANIFEST = "manifest.json"
MANIFEST_VERSION = 2
SIGNATURE = "model.sig"
"""The one file of a bundle that its manifest does not list: it may come later."""
SBOM = "bom.cdx.json"
SUMS = "SHA256SUMS"
"""Digests of a bundle's files in the form that `sha256sum -c` reads."""
FOLDER = "."
"""What a manifest calls its weights where the bundle itself is a checkpoint folder."""
_LICENCES = ("LICENSE", "LICENCE", "COPYING")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_identity(path: Path) -> str:
    """What tells on disk that a file is the same: device, inode, size and modification time."""
    status = path.stat()
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


class Digests:
    """SHA-256 of files, each hashed once in the life of this object.

    A file is known again by its identity; a hard link to it too.
    """

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __call__(self, path: Path) -> str:
        identity = file_identity(path)
        if identity not in self._known:
            self._known[identity] = file_digest(path)
        return self._known[identity]


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces), hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Record(BaseModel):
    """An immutable record that is written to and read from JSON."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


class FileEntry(Record):
    """One file: its path relative to the folder (POSIX), size in bytes and SHA-256."""

    path: str
    size: int
    sha256: str


def list_files(root: Path, digest: Callable[[Path], str] = file_digest) -> tuple[FileEntry, ...]:
    """Every regular file below `root`, sorted by path, hashed by `digest`."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return tuple(
        FileEntry(
            path=path.relative_to(root).as_posix(), size=path.stat().st_size, sha256=digest(path)
        )
        for path in files
    )


def content_digest(files: Iterable[FileEntry]) -> str:
    """One SHA-256 for a set of files: over their paths and contents, not their times."""
    return json_digest([[entry.path, entry.sha256] for entry in files])


@dataclass(frozen=True)
class Artifact:
    """An immutable stage output: a folder of the store, its key, and what the stage said of it."""

    stage: str
    key: str
    root: Path
    info: Mapping[str, Any]
    files: tuple[FileEntry, ...]

    @property
    def digest(self) -> str:
        return content_digest(self.files)


class _Versioned(Record):
    manifest_version: int


class Manifest(Record):
    """`manifest.json` of a bundle; docs/bundle.md says what each field holds.

    `digest` is the bundle's identity: the same inputs give the same. `observed` is what may differ
    between two equal builds, and no part of it. `seal` covers every byte of the file.
    """

    manifest_version: int = MANIFEST_VERSION
    name: str
    digest: str
    engine: str
    weights: str
    size_bytes: int
    bits_per_weight: float
    files: tuple[FileEntry, ...]
    recipe: dict[str, Any]
    plan: dict[str, Any] = Field(default_factory=dict)
    serve: dict[str, Any]
    source: dict[str, Any]
    calibration: dict[str, Any] | None = None
    quantization: dict[str, Any]
    quality: dict[str, Any]
    parity: dict[str, Any]
    tools: dict[str, str]
    launch: tuple[dict[str, Any], ...] = ()
    observed: dict[str, Any] = Field(default_factory=dict)
    created_by: str
    seal: str = ""

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """Read the text of a manifest; raises ValueError where it is none.

        Raises StoreError where it is one of another version of the format.
        """
        version = _Versioned.model_validate_json(text).manifest_version
        if version != MANIFEST_VERSION:
            made_by = "an older" if version < MANIFEST_VERSION else "a newer"
            raise StoreError(
                f"the bundle was made by {made_by} deployer: its format is {version}, this one "
                f"reads {MANIFEST_VERSION}",
                "Build it again, or use the deployer that made it.",
            )
        return cls.model_validate_json(text)

    def text(self) -> str:
        """The one spelling of this manifest; a file with another one is not intact."""
        return self.model_dump_json(indent=1) + "\n"

    def true_digest(self) -> str:
        """What `digest` must be: SHA-256 over all that decides the bundle, in canonical JSON."""
        return json_digest(self.model_dump(mode="json", exclude={"digest", "observed", "seal"}))

    def true_seal(self) -> str:
        """What `seal` must be: SHA-256 of the manifest's text with an empty seal."""
        return hashlib.sha256(self.model_copy(update={"seal": ""}).text().encode()).hexdigest()

    def sealed(self) -> Manifest:
        """The same manifest with its digest and its seal."""
        named = self.model_copy(update={"digest": self.true_digest()})
        return named.model_copy(update={"seal": named.true_seal()})

    @property
    def licence_files(self) -> tuple[str, ...]:
        """The files that hold the licence's text; () where none came with the source."""
        names = (entry.path for entry in self.files)
        return tuple(name for name in names if name.upper().startswith(_LICENCES))

    @property
    def full_name(self) -> str:
        """The name with the beginning of the digest: what an export of the bundle is called."""
        return f"{self.name}-{self.digest[:12]}"

    @property
    def weights_bytes(self) -> int:
        """Size of the weights' files alone."""
        return sum(entry.size for entry in self.files if self.holds_weights(entry))

    def holds_weights(self, entry: FileEntry) -> bool:
        """Whether one of the files is a file of weights."""
        if self.weights == FOLDER:
            return entry.path.endswith(".safetensors")
        return entry.path == self.weights


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. `weights` is the file the engine loads, or the folder of a checkpoint."""

    root: Path
    manifest: Manifest

    @property
    def weights(self) -> Path:
        return self.root / self.manifest.weights

    @classmethod
    def read(cls, root: Path) -> Bundle:
        """Read a bundle's manifest; raises OSError or ValueError where it is none.

        Raises StoreError where another version of deployer made it.
        """
        return cls(root, Manifest.parse((root / MANIFEST).read_text(encoding="utf-8")))
