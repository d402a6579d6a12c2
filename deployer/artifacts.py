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

from pydantic import BaseModel, ConfigDict

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
FOLDER = "."
"""What a manifest calls its weights where the bundle itself is a checkpoint folder."""


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


class Manifest(Record):
    """`manifest.json` of a bundle."""

    manifest_version: int = MANIFEST_VERSION
    name: str
    digest: str
    engine: str
    weights: str
    size_bytes: int
    bits_per_weight: float
    files: tuple[FileEntry, ...]
    recipe: dict[str, Any]
    serve: dict[str, Any]
    source: dict[str, Any]
    quantization: dict[str, Any]
    quality: dict[str, Any]
    parity: dict[str, Any]
    tools: dict[str, str]
    created_by: str


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. `weights` is the file the engine loads, or the folder of a checkpoint."""

    root: Path
    manifest: Manifest

    @property
    def weights(self) -> Path:
        return self.root / self.manifest.weights

    @property
    def weights_bytes(self) -> int:
        """Size of the weights alone, as the manifest has it."""
        return sum(
            entry.size
            for entry in self.manifest.files
            if entry.path == self.manifest.weights
            or (self.manifest.weights == FOLDER and entry.path.endswith(".safetensors"))
        )

    @classmethod
    def read(cls, root: Path) -> Bundle:
        """Read a bundle's manifest; raises OSError or ValueError where it is none."""
        text = (root / MANIFEST).read_text(encoding="utf-8")
        return cls(root, Manifest.model_validate_json(text))
