"""What a supervisor holds while it lives: its name, the signals that tell it to stop, its log."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import filelock

from deployer.durable import sweep
from deployer.errors import ServerError
from deployer.progress import Silent

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def hold_name(lock_file: Path, taken: ServerError) -> Iterator[None]:
    """Hold a name by its lock; the kernel frees it however this process ends.

    What killed processes left half-written beside the lock is deleted.

    Raises `taken` where another process has it.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise taken from error
    try:
        sweep(lock_file.parent)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def counting(signals: list[int]) -> Iterator[None]:
    """Note every signal that tells us to stop in a list; must be used in the main thread."""

    def note(number: int, _frame: object) -> None:
        signals.append(number)

    before = {number: signal.signal(number, note) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class SupervisorLog(Silent):
    """Standard error, which is supervisor.log: a line with its time for what is worth one."""

    def warn(self, message: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with contextlib.suppress(OSError):  # a full disk
            sys.stderr.write(f"{now} {message}\n")
            sys.stderr.flush()

    note = warn
