"""Calibration and evaluation text share nothing: else a model looks better than it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deployer.errors import StageError
from deployer.stages.context import StageContext, read_text
from deployer.stages.rows import strings, write_text

_LONG_LINE = 40
_LONG_HAN_LINE = 16
"""Characters from which a line counts: shorter ones, such as headings, may stand in both."""
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def require_disjoint(calibration: Path, evaluation: Path, context: StageContext) -> None:
    """Raise StageError where the two share a line of prose; compares lines of text, any spacing.

    Of chats and rows (JSONL, parquet) the lines of every message or text count.
    """
    scored = set(_long(read_text(evaluation).splitlines()))
    shared = scored.intersection(_long(_prose(calibration, context)))
    if shared:
        raise StageError(
            f"the calibration set and the evaluation text share {len(shared)} lines, for "
            f"example: {min(shared)[:60]!r}",
            "Quality measured on calibration text looks better than it is: use another text.",
        )


def _prose(path: Path, context: StageContext) -> Iterator[str]:
    """The lines of a text file; of a file of rows those of all its strings."""
    if path.suffix == ".parquet":
        yield from _parquet(path, context)
        return
    for line in read_text(path).splitlines():
        if path.suffix in (".jsonl", ".json"):
            for found in strings(_parsed(line)):
                yield from found.splitlines()
        else:
            yield line


def _parquet(path: Path, context: StageContext) -> Iterator[str]:
    with (
        TemporaryDirectory(prefix="deployer-") as folder,
        context.progress.step("compare calibration and evaluation text") as step,
    ):
        out = Path(folder) / "rows.txt"
        write_text(path, out, ("messages", "text"), context, step)
        with out.open(encoding="utf-8") as lines:
            yield from lines


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line  # the quantizer's worker names the line


def _long(lines: Iterable[str]) -> Iterator[str]:
    """The lines that count, each with single spaces."""
    plain = (" ".join(line.split()) for line in lines)
    return (line for line in plain if len(line) >= _least(line))


def _least(line: str) -> int:
    """Characters a line must have to count; a sentence mostly in Han script has fewer."""
    mostly_han = 2 * len(_HAN.findall(line)) > len(line)
    return _LONG_HAN_LINE if mostly_han else _LONG_LINE
