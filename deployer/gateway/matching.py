"""Regular expressions that somebody else wrote, searched in bounded time."""

from __future__ import annotations

import re
import signal
import threading
from types import FrameType

LONGEST = 2000
"""Characters of a text that are searched."""
SECONDS = 0.1
"""Processor time of a search, after which it counts as not found."""


class _TooLong(Exception):
    pass


class _Alarm:
    """Stops a search from within: Python's `re` looks for signals while it searches.

    A thread or a task could not stop it, for it never lets go of the interpreter. The handler
    stays in place, since a signal without one would end the process.
    """

    def __init__(self) -> None:
        self._armed = False

    def set(self) -> None:
        self._armed = True
        signal.signal(signal.SIGVTALRM, self._ring)
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)

    def clear(self) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self._armed:
            raise _TooLong


_ALARM = _Alarm()


def contains(expression: str, text: str) -> bool:
    """Whether the beginning of a text contains the expression, whatever the case of letters.

    False too where the search takes too long. Only a main thread can watch the time; in others
    nothing does. Raises re.error where it is no expression.
    """
    pattern, beginning = re.compile(expression, re.IGNORECASE), text[:LONGEST]
    if threading.current_thread() is not threading.main_thread():
        return pattern.search(beginning) is not None
    try:
        _ALARM.set()
        try:
            return pattern.search(beginning) is not None
        finally:
            _ALARM.clear()
    except _TooLong:
        return False
