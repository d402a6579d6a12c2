"""Broken inputs out of good ones: bytes, lines of text, trees of JSON, small folders.

Every function takes the generator that decides, so the same seed gives the same input again.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Mapping, Sequence
from typing import Any

NUMBERS = (
    0, 1, 2, 3, 7, 15, 16, 31, 32, 64, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536,
    10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
WORDS = (
    "null", "~", "true", "yes", "off", "-1", "0", "1e999", ".nan", "NaN", "-Infinity", "0x1F",
    "1_000", "1:60", "2001-01-01", "9" * 400, "-" + "9" * 30, "''", '""', "[]", "{}", "[[]]",
    "&a [*a, *a]", "*a", "<<: *a", "!!python/object/apply:os.abort []", "!!binary x", "!!set {a}",
    "\x00", "\x07", "\x85", "\u2028", "\ufeff", "\u202e", "é" * 40, "../../../etc/passwd",
    "/dev/zero", "/", "~nobody", "--help", "-", "$(id)", "; id", "`id`", "%s%n", "{{ 7 * 7 }}",
    "[" * 500, "{a: " * 200, '{"a":' * 200, "- " * 300, "? ", "|", ">", "#", "@", "\t", "a" * 5000,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**40, "",
    "a", "\x00", "../x", "/etc/passwd", "--x", "x" * 3000, "\ud800", "\u202e", [], {}, [[]], [None],
    {"a": {"b": {"c": []}}}, [[[[[[[[[[[]]]]]]]]]]], ["x"] * 300,
)  # fmt: skip
LONGEST = 256 << 10
"""Bytes an input may grow to."""


def mutate_bytes(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """One to six changes anywhere; `others` are inputs whose parts may be put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        _change(rng, changed, others)
    return bytes(changed[:LONGEST])


def _change(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    match rng.randrange(9):
        case 0 if at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        case 1 if at < len(data):
            data[at] = rng.choice((0, 1, 9, 10, 13, 32, 34, 127, 128, 255, rng.randrange(256)))
        case 2:
            number = struct.pack(rng.choice("<>") + "Q", rng.choice(NUMBERS))
            size = rng.choice((1, 2, 4, 8))
            start = at - at % rng.choice((1, 4, 8))
            data[start : start + size] = number[:size]
        case 3:
            del data[at : at + rng.choice((1, 2, 8, 40, 300))]
        case 4:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 40)))
        case 5:
            piece = bytes(data[at : at + rng.choice((1, 4, 16, 64, 512))])
            data[at:at] = piece * rng.choice((1, 2, 3, 50))
        case 6:
            del data[at:]
        case 7 if others:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            data[at:] = other[start : start + rng.choice((16, 256, len(other)))]
        case _:
            data[at : at + rng.choice((0, 1, 5))] = rng.choice(WORDS).encode()


def mutate_text(rng: random.Random, text: str) -> str:
    """Changes of whole lines and of single words, as somebody's typing may bring them."""
    lines = text.splitlines(keepends=True) or [""]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        match rng.randrange(8):
            case 0:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 1 if len(lines) > 1:
                del lines[at]
            case 2:
                lines[at] = " " * rng.randrange(9) + lines[at].lstrip(" ")
            case 3:
                lines[at] = lines[at].rstrip("\n") + " " + rng.choice(WORDS) + "\n"
            case 4:
                lines[at : at + 1] = [lines[at]] * rng.choice((2, 3, 400))
            case 5:
                lines.insert(at, rng.choice(WORDS) + rng.choice(("", ": ", "\n")))
            case _:
                lines[at] = _another_word(rng, lines[at])
    return "".join(lines)[:LONGEST]


def _another_word(rng: random.Random, line: str) -> str:
    """The line with one of its words, or what follows a colon, replaced."""
    key, colon, _ = line.partition(":")
    if colon and rng.random() < 0.6:
        return f"{key}: {rng.choice(WORDS)}\n"
    words = line.split(" ")
    words[rng.randrange(len(words))] = rng.choice(WORDS)
    return " ".join(words)


def mutate_tree(rng: random.Random, value: Any) -> Any:
    """The value with one to three of its nodes replaced, left out, doubled or wrapped."""
    changed = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(changed))
        if not places:
            return copy.deepcopy(rng.choice(VALUES))
        holder, key = rng.choice(places)
        match rng.randrange(7):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(("", "x", "__class__", "\x00", "a.b", "é", f"{key}x"))] = (
                    holder.pop(key)
                )
            case 2:
                other, which = rng.choice(places)
                if which in other if isinstance(other, dict) else which < len(other):
                    holder[key] = copy.deepcopy(other[which])
            case 3:
                holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
            case 4 if isinstance(holder, list):
                holder[key:key] = [holder[key]] * rng.choice((1, 3, 300))
            case _:
                holder[key] = copy.deepcopy(rng.choice((*VALUES, *NUMBERS)))
    return changed


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) of a tree."""
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        here = pending.pop()
        items = here.items() if isinstance(here, dict) else enumerate(here)
        for key, inner in list(items):
            found.append((here, key))
            if isinstance(inner, dict | list):
                pending.append(inner)
    return found


def json_bytes(value: Any) -> bytes:
    """JSON as careless programs write it: lone surrogates, NaN and all."""
    return json.dumps(value).encode("utf-8", "surrogatepass")[:LONGEST]


def mutate_json(rng: random.Random, value: Any) -> bytes:
    """A JSON document: mostly a changed tree, now and then changed bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, json_bytes(value))
    return json_bytes(mutate_tree(rng, value))


def pack(files: Mapping[str, bytes]) -> bytes:
    """A small folder as one input: length and bytes of each name and each content in turn."""
    parts = [part for name, data in files.items() for part in (name.encode(), data)]
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def unpack(data: bytes) -> dict[str, bytes]:
    """What `pack` packed."""
    parts, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        parts.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return {name.decode(): content for name, content in zip(parts[::2], parts[1::2], strict=True)}
