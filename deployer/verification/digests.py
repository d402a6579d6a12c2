"""The digest of every file; what was hashed before and is unchanged is not read again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from pathlib import Path

from deployer.artifacts import FileEntry
from deployer.errors import Fault
from deployer.memo import DigestMemo
from deployer.progress import SILENT, Progress

_CHUNK = 8 << 20


def check_digests(
    root: Path,
    entries: Iterable[FileEntry],
    memo: DigestMemo,
    progress: Progress = SILENT,
    *,
    full: bool = False,
) -> list[Fault]:
    """Faults of the files that are not what they are listed as; `full` believes no memory.

    `progress` is told in bytes, of those that have to be read.
    """
    entries = list(entries)
    for entry in entries if full else ():
        with suppress(OSError):  # one that cannot be looked at is told of below
            memo.forget(root / entry.path)
    total = sum(entry.size for entry in entries if not _known(memo, root / entry.path))
    done = 0
    faults = []
    title = f"hash {total / 1e6:.1f} MB of files"
    with progress.step(title) if total else nullcontext() as step:

        def told(count: int) -> None:
            nonlocal done
            done += count
            if step is not None:
                step.update(done, total)

        for entry in entries:
            try:
                digest = memo.digest(root / entry.path, lambda path: _hash(path, told))
            except OSError as error:
                faults.append(Fault(entry.path, f"cannot be read: {error.strerror}"))
                continue
            if digest != entry.sha256:
                faults.append(
                    Fault(
                        entry.path,
                        f"was changed: its SHA-256 is {digest[:16]}…, the manifest says "
                        f"{entry.sha256[:16]}…",
                    )
                )
    return faults


def _known(memo: DigestMemo, path: Path) -> bool:
    try:
        return memo.knows(path)
    except OSError:
        return False


def _hash(path: Path, told: Callable[[int], None]) -> str:
    """SHA-256 of a file; `told` gets the number of bytes of each piece that was read."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            state.update(piece)
            told(len(piece))
    return state.hexdigest()
