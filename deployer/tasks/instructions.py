"""A short instruction set of our own: does the chat answer, and does it do what it was told?

Each item of `data/instructions.jsonl` has an exact, programmatic check; nothing is judged by a
model. It is made to find a broken model quickly, not to rank good ones.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.home import Home
from deployer.metrics import is_degenerate
from deployer.progress import Progress
from deployer.tasks.results import ANSWER_KEPT, Item, TaskResult
from deployer.tasks.target import Target

DATA = Path(__file__).parent.parent / "data" / "instructions.jsonl"
MAX_TOKENS = 64
_LETTERS_SHARE = 0.6
_DISTINCT_SHARE = 0.3


@dataclass(frozen=True)
class Instruction:
    """One item: what is asked, and the checks, kind -> argument, that must all hold."""

    id: str
    ask: str
    checks: Mapping[str, Any]
    max_tokens: int = MAX_TOKENS


def load(path: Path = DATA) -> tuple[Instruction, ...]:
    """The items in their order; KeyError for a check that does not exist."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    items = tuple(
        Instruction(r["id"], r["ask"], r["checks"], r.get("max_tokens", MAX_TOKENS))
        for r in records
    )
    for item in items:
        for kind in item.checks:
            CHECKS[kind]
    return items


def run(target: Target, limit: int | None, home: Home, progress: Progress) -> TaskResult:
    """Ask the first `limit` items (all where None) over the chat endpoint and check the answers."""
    chosen = load()[:limit]
    started = time.monotonic()
    items = []
    with progress.step(f"instructions: {len(chosen)} items") as step:
        for number, instruction in enumerate(chosen):
            step.update(done=number, total=len(chosen), note=instruction.id)
            answer = target.chat(instruction.ask, instruction.max_tokens)
            missed = misses(instruction, answer)
            detail = f"missed: {', '.join(missed)}" if missed else "passed"
            items.append(Item(instruction.id, float(not missed), detail, answer[:ANSWER_KEPT]))
    settings = {"endpoint": "/v1/chat/completions", "temperature": 0, "limit": limit}
    seconds = time.monotonic() - started
    return TaskResult.of("instructions", "followed", tuple(items), settings, seconds)


def misses(instruction: Instruction, answer: str) -> list[str]:
    """The kinds of check that an answer does not hold."""
    text = answer.strip()
    return [kind for kind, wanted in instruction.checks.items() if not CHECKS[kind](text, wanted)]


def _plain(text: str) -> str:
    """Without case, surrounding quotes and closing punctuation, which instructions do not ask."""
    return text.casefold().strip(" \n\t.!\"'*`")


def _equals(text: str, wanted: list[str]) -> bool:
    return _plain(text) in {_plain(each) for each in wanted}


def _contains(text: str, wanted: list[str]) -> bool:
    """Every word of `wanted` stands in it as a whole word; "a|b" is either."""
    found = text.casefold()
    return all(re.search(rf"(?<!\w)(?:{each.casefold()})(?!\w)", found) for each in wanted)


def _absent(text: str, unwanted: list[str]) -> bool:
    return not any(each.casefold() in text.casefold() for each in unwanted)


def _matches(text: str, pattern: str) -> bool:
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def _json(text: str, wanted: Mapping[str, Any]) -> bool:
    """It is one JSON value and nothing else; an object has `wanted` among its members."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and all(value.get(key) == each for key, each in wanted.items())


def _between(count: int, bounds: list[int]) -> bool:
    return bounds[0] <= count <= bounds[1]


def _words(text: str, bounds: list[int]) -> bool:
    return _between(len(text.split()), bounds)


def _lines(text: str, bounds: list[int]) -> bool:
    return _between(len([line for line in text.splitlines() if line.strip()]), bounds)


def _language(text: str, least: int) -> bool:
    """At least `least` words that read like a language: letters, and not the same ones again."""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    letters = sum(len(word) for word in words)
    visible = len(re.sub(r"\s", "", text))
    return (
        len(words) >= least
        and letters >= _LETTERS_SHARE * visible
        and len(set(words)) >= _DISTINCT_SHARE * len(words)
        and not is_degenerate(text)
    )


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "equals": _equals,
    "contains": _contains,
    "absent": _absent,
    "matches": _matches,
    "json": _json,
    "words": _words,
    "lines": _lines,
    "language": _language,
}
