"""Files that are there whole or not at all, and locks that outlive nobody."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from deployer.errors import CommandError, StoreError
from deployer.progress import Progress

FULL_DISK = r"No space left on device|os error 28|Disk quota exceeded"
"""What programs write, as a regular expression, when the disk or a quota is full."""
_FULL_DISK_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_TRIED = 1 << 20


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


def sweep(folder: Path) -> None:
    """Delete what `write_atomically` left in a folder when its process was killed in it."""
    with suppress(OSError):  # they only take room
        for path in folder.glob(".*.*"):
            writer = path.name.rpartition(".")[2]
            if writer.isdecimal() and not psutil.pid_exists(int(writer)):
                path.unlink(missing_ok=True)


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


@contextmanager
def full_disk_told(name: str) -> Iterator[None]:
    """Where the program `name` fails in it because the disk is full: StoreError that says so.

    A worker tells by its exit status, other programs by their words. C++ streams tell no cause, and
    a file that is mapped into memory ends its writer by SIGBUS: then the log's disk is tried.
    """
    try:
        yield
    except CommandError as error:
        if not _tells_of_a_full_disk(error):
            raise
        raise StoreError(
            f"the disk filled up while {name} was at work",
            "Free some space, or set DEPLOYER_HOME to a folder on a larger disk. The whole log is "
            f"in {error.log_path}.",
        ) from error


def _tells_of_a_full_disk(error: CommandError) -> bool:
    if error.returncode is None or error.log_path is None:
        return False
    if error.returncode == errno.ENOSPC or re.search(FULL_DISK, error.tail):
        return True
    return _is_full(error.log_path.parent)


def _is_full(folder: Path) -> bool:
    """Whether the disk of `folder`, or a quota on it, has no place for a small file."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            return file.write(bytes(_TRIED)) < _TRIED
    except OSError as error:
        return error.errno in _FULL_DISK_NUMBERS
