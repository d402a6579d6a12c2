"""The requests of a run, as the file `plan.jsonl` has them: one JSON object a line, in order.

due      seconds from the start of the load; only an open loop heeds it
words    length of the prompt that is made up
tokens   max_tokens
text     a prompt to send instead of one that is made up
blocks   numbers of text blocks that the prompt consists of; equal numbers are equal text
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from settings import Settings


@dataclass(frozen=True, slots=True)
class Row:
    """One planned request."""

    words: int
    tokens: int
    due: float = 0.0
    text: str = ""
    blocks: tuple[int, ...] = ()
    block_words: int = 0


def read(settings: Settings) -> tuple[Row, ...]:
    """The rows of the plan; a single one from the settings where there is no plan."""
    if not settings.plan:
        return (Row(settings.prompt_words, settings.output_tokens),)
    with Path(settings.plan).open(encoding="utf-8") as lines:
        return tuple(_row(json.loads(line)) for line in lines)


def _row(record: dict[str, object]) -> Row:
    return Row(**{**record, "blocks": tuple(record.get("blocks", ()))})  # type: ignore[arg-type]


def share(rows: Sequence[Row], worker: int, workers: int) -> Iterator[tuple[int, Row]]:
    """(number in the plan, row) of every row that is this worker's: each takes every n-th."""
    for index in range(worker, len(rows), workers):
        yield index, rows[index]
