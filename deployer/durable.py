"""Files that are there whole or not at all, and locks that outlive nobody."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployer.errors import StoreError
from deployer.progress import Progress


def write_atomically(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a small file so that a reader sees the old text or the new, never a part.

    `mode` is what the file's rights are made of, with the process' mask taken off.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch(mode)
        temporary.write_text(text, encoding="utf-8")
        flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def hold_lock(path: Path, holder: str, progress: Progress) -> Iterator[None]:
    """Hold a lock file; the kernel frees it should its holder die.

    Where another has it, `progress` is told once whom we wait for. Raises StoreError where the
    file cannot be made.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.note(f"Waiting: {holder}.")
            lock.acquire()
    except OSError as error:
        raise disk_error(error, path.parent) from error
    try:
        yield
    finally:
        lock.release()


def disk_error(error: OSError, folder: Path) -> StoreError:
    """What the system says about a file of ours below `folder`, as one sentence."""
    verb = "open" if error.errno in (errno.EACCES, errno.EPERM) else "write to"
    return StoreError(
        f"cannot {verb} {error.filename or folder}: {error.strerror or error}",
        "Check free space and permissions, or set DEPLOYER_HOME to another folder.",
    )
