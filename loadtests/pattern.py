"""Chunks of one stream that differ in their text alone, read without parsing JSON.

Parsing is a third of what a chunk costs the client. Most chunks of a stream are the same bytes but
for the text in them: once one was parsed, the bytes before and after its text are known, and a
line that consists of these and a text without quotes and escapes means the same, with that text.
Every other line is parsed as JSON.
"""

from __future__ import annotations

import re

KEYS = ("content", "reasoning_content", "reasoning")
_START = {key: re.compile(rb'"%b"\s*:\s*"' % key.encode()) for key in KEYS}
_SPECIAL = re.compile(rb'["\\\x00-\x1f]')


class Pattern:
    """What stands before and after the text `key` of a chunk's delta."""

    def __init__(self, key: str, before: bytes, after: bytes) -> None:
        self.key = key
        self.before, self.after = before, after
        self.length = len(before) + len(after)

    def text(self, line: bytes) -> str | None:
        """The text of a line of this pattern, never ""; None where it is to be parsed."""
        if (
            len(line) <= self.length
            or not line.startswith(self.before)
            or not line.endswith(self.after)
        ):
            return None
        inner = line[len(self.before) : -len(self.after)]
        if _SPECIAL.search(inner):
            return None
        try:
            return inner.decode("utf-8")
        except UnicodeDecodeError:
            return None


def learn(line: bytes, key: str, text: str) -> Pattern | None:
    """The pattern of a line whose only choice has the text `text` as `key` of its delta.

    None where the text stands in it with escapes, or the key more than once.
    """
    found = list(_START[key].finditer(line))
    if len(found) != 1 or line.count(b'"%b"' % key.encode()) != 1:
        return None
    start = found[0].end()
    end = start + len(text.encode("utf-8", "replace"))
    whole = Pattern(key, line[:start], line[end:])
    return whole if line[end : end + 1] == b'"' and whole.text(line) == text else None
