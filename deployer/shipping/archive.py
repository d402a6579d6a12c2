"""Read an archive that anybody may have made: bounded, plain files only, nothing unexpected.

Nothing is written here. A tar is read uncompressed, so that it cannot grow; its headers first and
all of them, then the files that are asked for. A folder is read the same way, so that what was
unpacked by hand is held to the same rules.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from deployer.errors import StoreError

MAX_MEMBERS = 4096
MAX_DEPTH = 8
MAX_NAME = 512
CHUNK = 1 << 16
"""Bytes that are read at once, and so the largest header a tar may have."""

_UNSOUND = (
    tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError, OSError,
)  # fmt: skip
"""What `tarfile` raises for headers that cannot be."""


class Archive(Protocol):
    """Files by their path below the archive's one folder, with their sizes in bytes."""

    @property
    def label(self) -> str:
        """What messages call it."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Every file's path and size."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's content in pieces; raises StoreError where it cannot be read."""


def refused(label: str, why: str) -> StoreError:
    """The error for an archive that is not taken."""
    return StoreError(
        f"{label} cannot be imported: {why}",
        "Make it again with `deployer export BUNDLE --to tar`, or copy it again.",
    )


def read_small(archive: Archive, name: str, limit: int) -> bytes:
    """A small file's content; raises StoreError where it has over `limit` bytes."""
    if archive.sizes[name] > limit:
        raise refused(archive.label, f"{name} has {archive.sizes[name]} bytes, over {limit}")
    return b"".join(archive.chunks(name))


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """A tar file or a folder, to be read; raises StoreError where it is not one we take."""
    label = path.resolve().name
    if path.is_dir():
        yield _Folder(label, path, _scan_folder(label, path))
        return
    try:
        stream = path.open("rb")
    except OSError as error:
        raise _unreadable(label, error) from error
    with stream:
        yield _open_tar(label, stream)


def _unreadable(label: str, error: Exception) -> StoreError:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return refused(label, said)


def _checked(label: str, files: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Names and sizes, each name once and inside; raises StoreError."""
    sizes: dict[str, int] = {}
    for name, size in files:
        if not _is_plain(name):
            raise refused(label, f"it holds the path {name[:MAX_NAME]!r}")
        if name in sizes:
            raise refused(label, f"it holds {name} twice")
        sizes[name] = size
        if len(sizes) > MAX_MEMBERS:
            raise refused(label, f"it holds more than {MAX_MEMBERS} files")
    return sizes


def _is_plain(name: str) -> bool:
    """Whether a path stays inside and means the same everywhere."""
    parts = name.split("/")
    inside = all(part not in ("", ".", "..") for part in parts) and len(parts) <= MAX_DEPTH
    return inside and len(name) <= MAX_NAME and name.isprintable() and "\\" not in name


@dataclass(frozen=True)
class _Folder:
    label: str
    root: Path
    sizes: Mapping[str, int]

    def chunks(self, name: str) -> Iterator[bytes]:
        try:
            stream = (self.root / name).open("rb")
        except OSError as error:
            raise _unreadable(self.label, error) from error
        with stream:
            yield from _exactly(self.label, name, stream, self.sizes[name])


def _scan_folder(label: str, root: Path) -> dict[str, int]:
    def files(folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
        for path in sorted(folder.iterdir()):
            status, name = path.lstat(), f"{prefix}{path.name}"
            if stat.S_ISDIR(status.st_mode) and name.count("/") < MAX_DEPTH:
                yield from files(path, f"{name}/")
            elif stat.S_ISREG(status.st_mode):
                yield name, status.st_size
            else:
                raise refused(label, f"{name} is no plain file")

    try:
        return _checked(label, files(root, ""))
    except OSError as error:
        raise _unreadable(label, error) from error


@dataclass(frozen=True)
class _Tar:
    label: str
    tar: tarfile.TarFile
    members: Mapping[str, tarfile.TarInfo]
    sizes: Mapping[str, int]

    def chunks(self, name: str) -> Iterator[bytes]:
        stream = self.tar.extractfile(self.members[name])
        assert stream is not None  # a plain file
        with stream:
            yield from _exactly(self.label, name, stream, self.sizes[name])


def _exactly(label: str, name: str, stream: IO[bytes], size: int) -> Iterator[bytes]:
    """The next `size` bytes of a file in pieces; raises StoreError where it has fewer."""
    left = size
    while left:
        try:
            chunk = stream.read(min(CHUNK, left))
        except (OSError, tarfile.TarError) as error:
            raise _unreadable(label, error) from error
        if not chunk:
            raise refused(label, f"{name} is cut short")
        left -= len(chunk)
        yield chunk


def _open_tar(label: str, stream: IO[bytes]) -> _Tar:
    try:
        size = stream.seek(0, 2)
        stream.seek(0)
        tar = tarfile.TarFile(fileobj=_Bounded(stream))
        found = dict(_members(label, tar, size))
    except _UNSOUND as error:
        raise refused(label, f"it is no sound, uncompressed tar file ({error})") from error
    tops = {name.split("/", 1)[0] for name in found}
    if len(tops) != 1 or any("/" not in name for name in found):
        raise refused(label, "it does not hold exactly one folder with files in it")
    (top,) = tops
    members = {name.removeprefix(f"{top}/"): member for name, member in found.items()}
    sizes = _checked(label, ((name, member.size) for name, member in members.items()))
    return _Tar(label, tar, members, sizes)


def _members(label: str, tar: tarfile.TarFile, size: int) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files of a tar; raises StoreError for whatever is neither file nor folder."""
    seen: set[str] = set()
    for count, member in enumerate(tar, 1):
        if count > 2 * MAX_MEMBERS:
            raise refused(label, f"it holds more than {MAX_MEMBERS} files")
        if member.isdir():
            continue
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
            raise refused(label, f"{member.name[:MAX_NAME]!r} is no plain file")
        if not 0 <= member.size <= size - member.offset_data:
            raise refused(label, f"{member.name[:MAX_NAME]!r} is cut short")
        if member.name in seen:  # which of both is meant, readers do not agree upon
            raise refused(label, f"it holds {member.name[:MAX_NAME]!r} twice")
        seen.add(member.name)
        yield member.name, member


class _Bounded:
    """A file that `tarfile` reads in small pieces only: a header cannot ask for gigabytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream

    def read(self, size: int, /) -> bytes:
        if not 0 <= size <= CHUNK + tarfile.RECORDSIZE:
            raise tarfile.ReadError("a header is too long")
        return self.stream.read(size)

    def seek(self, position: int, /) -> object:
        return self.stream.seek(position)

    def tell(self) -> int:
        return self.stream.tell()

    def write(self, data: bytes, /) -> object:
        raise OSError("this file is only read")

    def close(self) -> None:
        self.stream.close()
