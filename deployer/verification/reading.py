"""Small files of a bundle, read with bounds, and never through a link or from a device."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_JSON = 16 << 20
"""Bytes; parsed they take up to 25 times as much memory."""


class Unreadable(Exception):
    """A file that cannot be used; the message says why, as the rest of a sentence about it."""


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; raises Unreadable."""
    try:
        # Without waiting: opening a pipe for reading blocks until somebody writes to it.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("is no regular file")
            raw = stream.read(limit + 1)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Unreadable("is a symbolic link") from error
        if error.errno == errno.ENOENT:
            raise Unreadable("is missing") from error
        raise Unreadable(f"cannot be read: {error.strerror}") from error
    if len(raw) > limit:
        raise Unreadable(f"has over {limit} bytes")
    return raw


def read_text(path: Path, limit: int) -> str:
    """The UTF-8 text of a regular file of at most `limit` bytes; raises Unreadable."""
    try:
        return read_file(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is no UTF-8 text: {error.reason} at byte {error.start}") from error


def parse_json(raw: bytes | str) -> Any:
    """A JSON value in which no object has a name twice; raises Unreadable.

    Two programs that read a name which stands there twice may believe different values.
    """
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise Unreadable("is nested too deeply") from error
    except ValueError as error:  # no UTF-8 and numbers of thousands of digits are such, too
        raise Unreadable(f"is not valid JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands twice in one object")
    return value
