"""The event log: what happened to a deployment, one JSON object a line, for people and programs.

No event holds a prompt, an answer or a key. Several processes may write to the same log.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

FILE = "events.jsonl"
LIMIT = 16 << 20
"""Bytes at which the log is put aside."""
KEPT = 3
"""Old logs that are kept: events.jsonl.1 is the youngest."""
LONGEST = 1000
"""Characters that are kept of a text; what an engine says of itself has any length."""


class OnEvent(Protocol):
    """Who wants to know what happens."""

    def __call__(self, event: str, /, **fields: object) -> None: ...


def _now() -> datetime:
    return datetime.now(UTC)


class EventLog:
    """Appends to one log. It never raises: a full disk must not stop the gateway.

    `dropped` counts the events that could not be written; the next one that can says how many in
    a field of that name.
    """

    def __init__(
        self, path: Path, *, limit: int = LIMIT, now: Callable[[], datetime] = _now
    ) -> None:
        self.path = path
        self.dropped = 0
        self._limit = limit
        self._now = now
        self._untold = 0

    def write(self, event: str, /, **fields: object) -> None:
        """Write one event with its time; `fields` hold what JSON can hold, or have a text."""
        told = {"dropped": self._untold} if self._untold else {}
        record = {"time": self._stamp(), "event": event, **fields, **told}
        try:
            line = json.dumps(_shortened(record), default=str).encode() + b"\n"
            self._append(line)
        except (OSError, ValueError):
            self.dropped += 1
            self._untold += 1
        else:
            self._untold = 0

    def _stamp(self) -> str:
        return self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _append(self, line: bytes) -> None:
        """One write for the line, so that those of two processes never mix."""
        with self._opened() as descriptor:
            size = os.fstat(descriptor).st_size
            if size and size + len(line) > self._limit and self._put_aside(descriptor):
                with self._opened() as fresh:
                    _write(fresh, line)
            else:
                _write(descriptor, line)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        # Opened anew for each event: they are rare, and another process may have put the log
        # aside. Without blocking, so that a pipe of that name cannot stop the gateway.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(self.path, flags, 0o640)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{self.path} is no file")
            yield descriptor
        finally:
            os.close(descriptor)

    def _put_aside(self, descriptor: int) -> bool:
        """Rename the logs, unless another process does so at this moment."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(descriptor), self.path.stat()):
                return True  # done by another
        except OSError:
            return False
        for number in range(KEPT, 0, -1):
            older = self._aside(number - 1) if number > 1 else self.path
            with contextlib.suppress(FileNotFoundError):
                older.replace(self._aside(number))
        return True

    def _aside(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _write(descriptor: int, line: bytes) -> None:
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        line = b"\n" + line  # the end of a line that was cut short, by a full disk or a crash
    if os.write(descriptor, line) != len(line):
        raise OSError("the disk is full")


def _shortened(fields: dict[str, object]) -> dict[str, object]:
    return {
        name: value[:LONGEST] if isinstance(value, str) else value for name, value in fields.items()
    }
