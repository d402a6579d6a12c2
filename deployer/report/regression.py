"""Two stored results compared, for people: what differs, then every figure that changed. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from deployer.regression import Change, Difference, Verdict, incomparable
from deployer.report import words

COLUMNS = ("format", "figure", "old", "new", "new / old", "verdict", "why")
ORDER: tuple[Verdict, ...] = ("regressed", "improved", "unknown", "same")
"""Verdicts in the order they are shown."""
_KINDS = {
    "workload": "another workload",
    "model": "another model",
    "host": "another machine",
    "versions": "another version",
    "formats": "formats",
    "contended": "contended trial",
}


def difference_lines(found: Sequence[Difference]) -> list[str]:
    """One line for each difference around the figures, and what it means for them."""
    lines = [
        f"{_KINDS[each.kind]}: {each.what}: {_short(each.old)} → {_short(each.new)}"
        for each in found
    ]
    if incomparable(found):
        lines.append("The two were not asked the same: their figures do not tell a regression.")
    elif any(each.kind in ("host", "versions") for each in found):
        lines.append("What follows may come from these differences.")
    return lines


def _short(value: str) -> str:
    """A commit or a digest by its beginning."""
    return re.sub(r"\b[0-9a-f]{40,}\b", lambda found: f"{found[0][:12]}…", value)


def regression_table(
    found: Sequence[Change], every: bool = False
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Columns and rows for a terminal, regressions first; those that stayed only with `every`."""
    shown = [change for change in found if every or change.verdict != "same"]
    shown.sort(key=lambda change: ORDER.index(change.verdict))
    return COLUMNS, tuple(_row(change) for change in shown)


def regression_lines(found: Sequence[Change]) -> list[str]:
    """What stands below the table: the verdict in a sentence, and what it rests on."""
    if not found:
        return ["The two results have no format in common."]
    counts = Counter(change.verdict for change in found)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ORDER if counts[verdict])
    lines = [f"{len(found)} figures: {told}."]
    if counts["regressed"]:
        formats = dict.fromkeys(c.format for c in found if c.verdict == "regressed")
        lines.append(f"Regression in {', '.join(formats)}.")
    elif counts["unknown"] == len(found):
        lines.append("Nothing can be told from these two: see why above.")
    else:
        lines.append("No regression was found.")
    return lines


def _row(change: Change) -> tuple[str, ...]:
    return (
        change.format,
        change.figure,
        _value(change.old, change.unit),
        _value(change.new, change.unit),
        words.DASH if change.ratio is None else f"{change.ratio:.2f}",
        change.verdict,
        change.why,
    )


def _value(value: float | None, unit: str) -> str:
    """A figure in its unit, with few digits."""
    if value is None:
        return words.DASH
    if unit == "ms":
        return words.ms(value)
    if unit == "s":
        return words.ms(1000 * value)
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB"
    if unit == "share":
        return words.share(value)
    if unit == "tok/s":
        return f"{words.rate(value)} {unit}"
    return f"{value:.4g} {unit}".strip()
