"""Logs that programs hold open are kept small: what is old moves aside, the file stays.

engine.log      what the engine writes now
engine.log.1    what it wrote before that, or at the start before
engine.log.2    and before that
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

KEPT = 2
"""Older files of a log."""
TAIL_BYTES = 65536


class EngineLog:
    """The log of one server's engine, over all its starts."""

    def __init__(self, path: Path, most: int) -> None:
        self.path = path
        self._most = most
        self._start = 0

    def begin(self) -> None:
        """The engine is about to be started: what it writes from here on belongs to this start."""
        self._start = self.path.stat().st_size if self.path.exists() else 0

    def bound(self) -> None:
        """Move what was written aside once it is more than `most` bytes."""
        if cut(self.path, self._most):
            self._start = 0

    def text(self) -> str:
        """The end of what this start wrote, at most 64 KiB."""
        try:
            with self.path.open("rb") as log:
                size = log.seek(0, 2)
                log.seek(max(min(self._start, size), size - TAIL_BYTES))
                return log.read().decode("utf-8", "replace")
        except OSError:
            return ""


def turn_over(path: Path) -> None:
    """Begin a new log; nobody has the old one open."""
    if path.exists():
        _make_room(path)
        path.replace(older(path, 1))


def cut(path: Path, most: int) -> bool:
    """Copy a log of more than `most` bytes aside and empty it; whether that was done.

    Programs go on writing to it, at its new end, since they append. What is written between the
    copy and the cut is lost. Where there is no room for the copy, the old text is given up: a
    full disk is worse.
    """
    try:
        if path.stat().st_size <= most:
            return False
    except OSError:
        return False
    _make_room(path)
    try:
        shutil.copyfile(path, older(path, 1))
    except OSError:
        older(path, 1).unlink(missing_ok=True)
    with contextlib.suppress(OSError), path.open("r+b") as log:
        log.truncate(0)
    return True


def older(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _make_room(path: Path) -> None:
    """Give every older file the next number; the last one goes."""
    for number in range(KEPT, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            if number == KEPT:
                older(path, number).unlink()
            else:
                older(path, number).replace(older(path, number + 1))
