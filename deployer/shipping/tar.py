"""A bundle as one tar file: the same bundle gives the same bytes, whoever writes it and when."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from deployer.artifacts import MANIFEST, SIGNATURE, Bundle
from deployer.durable import flush, write_atomically
from deployer.errors import StoreError
from deployer.progress import Progress, Step
from deployer.shipping.plain import header, require_space

BUNDLE = "bundle"
"""The folder of the bundle in an archive that carries more than the bundle."""
SUMS = ".sha256"
"""What the name of the file beside the archive ends with."""
CHUNK = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_PROGRAM = ".sh"


@dataclass(frozen=True)
class Written:
    """A tar file that was written: its SHA-256, hexadecimal, and its size in bytes."""

    path: Path
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class _Entry:
    """One file of the archive; `sha256` is what its bytes must give, None where any will do."""

    name: str
    source: Path | bytes
    size: int
    sha256: str | None = None

    def open(self) -> AbstractContextManager[IO[bytes]]:
        if isinstance(self.source, bytes):
            return io.BytesIO(self.source)
        return self.source.open("rb")


def write(
    bundle: Bundle,
    target: Path,
    progress: Progress,
    extra: Mapping[str, Path | str] | None = None,
) -> Written:
    """Write a bundle to the tar file `target`, and its SHA-256 to a file beside it.

    Both are replaced where they are there. Without `extra` the archive's one folder is the bundle
    itself; with it (path in the archive -> file or text) the bundle is its folder `bundle`. Files
    are streamed, and each one's bytes are compared with the manifest on the way. Raises
    StoreError, and leaves nothing, where they differ or the disk refuses.
    """
    target = target.absolute()
    entries = _entries(bundle, extra or {})
    needed = sum(entry.size + 4 * _BLOCK for entry in entries) + tarfile.RECORDSIZE
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        require_space(target.parent, needed, target.name)
        with progress.step(f"Writing {target.name}") as step:
            written = _write_whole(bundle.manifest.full_name, entries, target, step)
        write_atomically(_sums(target), f"{written.sha256}  {target.name}\n")
    except OSError as error:
        said = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
        raise StoreError(
            f"cannot write {target}: {said or error}",
            "Check free space and permissions, or name another --output.",
        ) from error
    return written


def _sums(target: Path) -> Path:
    return target.with_name(target.name + SUMS)


def _entries(bundle: Bundle, extra: Mapping[str, Path | str]) -> list[_Entry]:
    """Every file of the archive, sorted by its path below the top folder."""
    prefix = f"{BUNDLE}/" if extra else ""
    manifest = bundle.manifest.text().encode()
    entries = [_Entry(prefix + MANIFEST, manifest, len(manifest))]
    for each in bundle.manifest.files:
        source = bundle.root / each.path
        entries.append(_Entry(prefix + each.path, source, each.size, each.sha256))
    if (bundle.root / SIGNATURE).is_file():
        entries.append(_loose(prefix + SIGNATURE, bundle.root / SIGNATURE))
    entries += [_loose(name, source) for name, source in extra.items()]
    return sorted(entries, key=lambda entry: entry.name)


def _loose(name: str, source: Path | str) -> _Entry:
    """A file that the manifest does not list."""
    if isinstance(source, str):
        return _Entry(name, source.encode(), len(source.encode()))
    return _Entry(name, source, source.stat().st_size)


def _write_whole(top: str, entries: list[_Entry], target: Path, step: Step) -> Written:
    """Write under another name, and take the name when all is on the disk."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        leftover.unlink()  # of an export that was killed
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            tar = _Writer(stream, step, sum(entry.size for entry in entries))
            for folder in _folders(top, entries):
                tar.add_folder(folder)
            for entry in entries:
                tar.add_file(top, entry)
            tar.end()
        flush(partial)
        _sums(target).unlink(missing_ok=True)  # never the old sum beside the new file
        partial.replace(target)
        flush(target.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return Written(target, tar.digest.hexdigest(), tar.size)


def _folders(top: str, entries: list[_Entry]) -> list[str]:
    """All folders, each behind the one that holds it."""
    inner = {
        parent.as_posix() for entry in entries for parent in PurePosixPath(entry.name).parents
    } - {"."}
    return [top, *(f"{top}/{name}" for name in sorted(inner))]


class _Writer:
    """A tar file under way, hashed as it is written."""

    def __init__(self, stream: IO[bytes], step: Step, total: int) -> None:
        self.stream = stream
        self.step = step
        self.total = total
        self.digest = hashlib.sha256()
        self.size = 0
        self.done = 0

    def add_folder(self, name: str) -> None:
        self._write(header(name, tarfile.DIRTYPE, 0, 0o755))

    def add_file(self, top: str, entry: _Entry) -> None:
        """Raises StoreError where the file is not what its entry says."""
        mode = 0o755 if entry.name.endswith(_PROGRAM) else 0o644
        self._write(header(f"{top}/{entry.name}", tarfile.REGTYPE, entry.size, mode))
        content, left = hashlib.sha256(), entry.size
        with entry.open() as source:
            while chunk := source.read(min(CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    break
                content.update(chunk)
                self._write(chunk)
                self.done += len(chunk)
                self.step.update(self.done, self.total, entry.name)
        if left or entry.sha256 not in (None, content.hexdigest()):
            raise StoreError(
                f"{entry.name} changed since it was verified", "Build the bundle again."
            )
        self._write(b"\0" * (-entry.size % _BLOCK))

    def end(self) -> None:
        self._write(b"\0" * 2 * _BLOCK)
        self._write(b"\0" * (-self.size % tarfile.RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self.stream.write(data)
        self.digest.update(data)
        self.size += len(data)
