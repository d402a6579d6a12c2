"""Server-sent events: cut a stream of bytes into whole events, and read one. Pure.

An engine's bytes are handed on as they are; this only finds where events end, so that a client
never gets half of one. Lines end with LF, CRLF or CR, as the standard allows.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_EVENT = 1 << 20
"""Bytes of one event above which the stream is taken for broken."""

_BLANK = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE = re.compile(rb"\r\n|\n|\r")
DONE = b"[DONE]"


class EventTooLong(ValueError):
    """An event that is longer than `MAX_EVENT`."""


class Splitter:
    """Holds the beginning of an event until its end comes; at most `MAX_EVENT` bytes of it."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are whole now, each with the empty line that ends it.

        Joined, everything that was ever returned and `rest` are the bytes that were fed. Raises
        EventTooLong where an event does not end in time.
        """
        if (
            not self._held
            and data.endswith(b"\n\n")
            and data.count(b"\n\n") == 1
            and b"\r" not in data
            and len(data) <= MAX_EVENT
        ):
            return [data]  # what engines send, nearly always: one event
        self._held += data
        events = []
        start, position = 0, self._searched
        while found := _BLANK.search(self._held, position):
            events.append(bytes(self._held[start : found.end()]))
            start = position = found.end()
        del self._held[:start]
        # An end may begin in what was searched already: CR LF, and half of another.
        self._searched = max(0, len(self._held) - 3)
        if len(self._held) > MAX_EVENT or any(len(event) > MAX_EVENT for event in events):
            raise EventTooLong(f"an event is longer than {MAX_EVENT} bytes")
        return events

    @property
    def rest(self) -> bytes:
        """What came of an event that has not ended."""
        return bytes(self._held)


def payload(event: bytes) -> bytes | None:
    """What its `data` lines hold, joined by LF; None for a comment or an event without any."""
    plain = event.startswith(b"data: ") and event.endswith(b"\n\n")
    if plain and event.count(b"\n") == 2 and b"\r" not in event:
        return event[6:-2]
    lines = [line for line in _LINE.split(event) if line.startswith(b"data")]
    values = []
    for line in lines:
        name, _, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" "))
    return b"\n".join(values) if values else None


def read_json(data: bytes) -> dict[str, Any] | None:
    """The JSON object of an event's payload, None where it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def event_of(value: dict[str, Any]) -> bytes:
    """One event with a JSON object in it."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
