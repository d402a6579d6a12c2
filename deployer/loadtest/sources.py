"""Files that say what to ask: traces of requests, and real chats.

A trace is JSONL or CSV, a request a line, under one of these sets of names:

    time, prompt_tokens, output_tokens              seconds
    timestamp, input_length, output_length          milliseconds, with hash_ids of 512-token blocks
    TIMESTAMP, ContextTokens, GeneratedTokens       dates and times

Chats are JSONL with `messages` of `role` and `content`, or `conversations` of `from` and `value`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from deployer.errors import LoadTestError

MOST_ROWS = 1_000_000
BLOCK_TOKENS = 512
"""Tokens that one hash id of a trace stands for."""
CHARS_PER_TOKEN = 4
"""Where the server has no tokenizer to ask."""
_NAMES = {
    "time": ("time", "prompt_tokens", "output_tokens"),
    "timestamp": ("timestamp", "input_length", "output_length"),
    "TIMESTAMP": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
}
"""Name of the time column -> (time, prompt tokens, output tokens)."""
_PEOPLE = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Traced:
    """One request of a trace, `due` seconds after its first one."""

    due: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Chat:
    """The first question of a real chat and the answer it got."""

    question: str
    answer: str


def read_trace(path: Path) -> tuple[Traced, ...]:
    """The requests in the order of their times; LoadTestError with the line of what is wrong."""
    found = []
    for number, record in _records(path):
        try:
            found.append(_traced(record))
        except (LookupError, ValueError, TypeError, OverflowError) as error:
            raise LoadTestError(
                f"{path}, line {number}: no request of a trace: {error}",
                "docs/loadtest.md names the columns of a trace.",
            ) from error
    if not found:
        raise _nothing(path, "requests")
    start = min(one.due for one in found)
    moved = (replace(one, due=round(one.due - start, 6)) for one in found)
    return tuple(sorted(moved, key=lambda one: one.due))


def read_chats(path: Path) -> tuple[Chat, ...]:
    """Every chat that begins with a question and its answer; others are left out."""
    found = []
    for number, record in _records(path):
        try:
            chat = _chat(record)
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise LoadTestError(
                f"{path}, line {number}: no chat: {error}",
                'A chat is {"messages": [{"role": "user", "content": "…"}, …]}.',
            ) from error
        if chat:
            found.append(chat)
    if not found:
        raise _nothing(path, "chats of a question and an answer")
    return tuple(found)


def described(path: Path) -> str:
    """The file's name and what it holds, so that two results tell whether they used the same."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    return f"{path.name} sha256:{digest.hexdigest()}"


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line, record) of every line that is not blank."""
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            if path.suffix.lower() == ".csv":
                rows = csv.DictReader(lines)
                yield from ((rows.line_num, _bounded(path, rows.line_num, row)) for row in rows)
                return
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _bounded(path, number, json.loads(line))
    except OSError as error:
        raise _unreadable(path, error) from error
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise LoadTestError(
            f"{path} is not {'CSV' if path.suffix.lower() == '.csv' else 'JSONL'}: {error}",
            "Each line is one JSON object; a file of columns ends in .csv.",
        ) from error


def _bounded(path: Path, number: int, record: Any) -> Mapping[str, Any]:
    if number > MOST_ROWS:
        raise LoadTestError(f"{path} has more than {MOST_ROWS:,} lines", "Cut it.")
    if not isinstance(record, dict):
        raise LoadTestError(f"{path}, line {number}: no object", "Each line is one JSON object.")
    return record


def _traced(record: Mapping[str, Any]) -> Traced:
    names = next((names for first, names in _NAMES.items() if first in record), None)
    if names is None:
        raise ValueError("neither time, timestamp nor TIMESTAMP is there")
    moment, prompt, output = (record[name] for name in names)
    blocks = record.get("hash_ids") or ()
    one = Traced(_seconds(names[0], moment), int(prompt), int(output), tuple(map(int, blocks)))
    if not math.isfinite(one.due) or one.prompt_tokens < 1 or one.output_tokens < 1:
        raise ValueError("times are finite, and token counts at least 1")
    return one


def _seconds(name: str, moment: Any) -> float:
    if name == "TIMESTAMP":
        return datetime.fromisoformat(str(moment).strip()).timestamp()
    return float(moment) / (1000 if name == "timestamp" else 1)


def _chat(record: Mapping[str, Any]) -> Chat | None:
    if "messages" in record:
        said = [(str(m["role"]), str(m["content"])) for m in record["messages"]]
    else:
        said = [
            (_PEOPLE.get(str(m["from"]), str(m["from"])), str(m["value"]))
            for m in record["conversations"]
        ]
    said = [(role, text.strip()) for role, text in said if role != "system"]
    if len(said) < 2 or [role for role, _ in said[:2]] != ["user", "assistant"]:
        return None
    return Chat(said[0][1], said[1][1]) if said[0][1] and said[1][1] else None


def _nothing(path: Path, what: str) -> LoadTestError:
    return LoadTestError(f"{path} has no {what}", "docs/loadtest.md says what it should hold.")


def _unreadable(path: Path, error: OSError) -> LoadTestError:
    return LoadTestError(f"cannot read {path}: {error.strerror}", "Mend loadtest.trace or .chats.")
