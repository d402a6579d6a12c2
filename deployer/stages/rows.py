"""Rows of a JSONL or parquet file, as one text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deployer.errors import StageError
from deployer.progress import Step
from deployer.stages.context import StageContext, read_text

PARQUET = "parquet"
"""The toolchain that reads parquet files."""


def write_text(
    path: Path, out: Path, columns: Sequence[str], context: StageContext, step: Step
) -> dict[str, int]:
    """Write every string in `columns` of `path`, in order, to `out`; gives {rows, characters}.

    Each ends its line: where it does not itself, a newline is added. A parquet file is read in a
    toolchain of its own. Raises StageError where there is no such column.
    """
    if path.suffix == ".parquet":
        request = {"path": str(path), "out": str(out), "columns": list(columns)}
        return context.work("read_rows", PARQUET, request, step)
    rows = list(_json_rows(path, columns))
    text = "".join(value if value.endswith("\n") else f"{value}\n" for value in strings(rows))
    out.write_text(text, encoding="utf-8", newline="")
    return {"rows": len(rows), "characters": len(text)}


def _json_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Those of the columns that each row has; at least one."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        row = _parsed(line)
        found = {name: row[name] for name in columns if name in row}
        if not found:
            raise StageError(
                f"line {number} of {path.name} is no JSON object with {' or '.join(columns)}",
                "A file of rows is JSONL: one JSON object a line.",
            )
        yield found


def _parsed(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)
