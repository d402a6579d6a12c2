"""What became worse between two results, and is it noise?

A figure regressed, or improved, where both hold:

- the 95 % intervals of the two means do not meet;
- the change is beyond max(5 %, 2 x CV). CV is the coefficient of variation over the trials,
  standard deviation / mean, of the side that varied more. A change is larger / smaller - 1, so
  that exchanging the two results exchanges the two verdicts and nothing else.

Without an interval a change beyond that is `unknown`, never a regression. The rule sees the noise
between the trials of a run; it cannot see what changed on the machine between the two runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from deployer.artifacts import Record
from deployer.comparison import Comparison, Row
from deployer.regression.figures import Figure, Figures, Measured, of_load_test, of_row
from deployer.regression.stored import Stored, two_kinds
from deployer.results import LoadTestResult

LEAST_CHANGE = 0.05
"""The smallest change that can be a regression, as a share."""
STATUS = "status"
Verdict = Literal["regressed", "improved", "same", "unknown"]


class Change(Record):
    """One figure of one format in two results; `ratio` is new / old.

    A load test has levels of load where a comparison has formats. `unit` is "s", "ms", "bytes",
    "tok/s", "share" (0 to 1), "nats", or "" for a ratio or a task's score. The figure "status"
    has no numbers: there the format itself was measured on one side only.
    """

    format: str
    figure: str
    unit: str
    old: float | None
    new: float | None
    ratio: float | None
    verdict: Verdict
    why: str


def changes(old: Stored, new: Stored) -> tuple[Change, ...]:
    """Every figure of every format that both have; raises UsageError for two kinds of results."""
    if isinstance(old, Comparison) and isinstance(new, Comparison):
        rows = {row.name: row for row in new.rows}
        pairs = [(row, rows[row.name]) for row in old.rows if row.name in rows]
        return tuple(change for pair in pairs for change in _of_rows(*pair))
    if isinstance(old, LoadTestResult) and isinstance(new, LoadTestResult):
        before, after = of_load_test(old), of_load_test(new)
        names = [name for name in before if name in after]
        return tuple(c for name in names for c in _of_figures(name, before[name], after[name]))
    raise two_kinds()


def regressed(found: Sequence[Change]) -> tuple[Change, ...]:
    """The changes that are a regression: exit code 4 where there are any."""
    return tuple(change for change in found if change.verdict == "regressed")


def judged(name: str, figure: Figure, old: Measured | None, new: Measured | None) -> Change:
    """The change of one figure of the format `name`, by the rule above; None: not measured."""
    verdict, why = _verdict(figure, old, new)
    before = old.mean if old else None
    after = new.mean if new else None
    return Change(
        format=name,
        figure=figure.name,
        unit=figure.unit,
        old=before,
        new=after,
        ratio=after / before if before and after is not None else None,
        verdict=verdict,
        why=why,
    )


def _verdict(figure: Figure, old: Measured | None, new: Measured | None) -> tuple[Verdict, str]:
    if old is None or new is None:
        return "unknown", f"not measured in the {'old' if old is None else 'new'} result"
    if old.doubt or new.doubt:
        return "unknown", old.doubt or new.doubt
    if old.basis != new.basis:
        return "unknown", "the two were not measured on the same text or items"
    limit = max(LEAST_CHANGE, 2 * max(old.cv, new.cv))
    if _change(old.mean, new.mean) <= limit:
        return "same", f"within {100 * limit:.0f} %"
    if abs(new.mean - old.mean) <= figure.floor:
        return "same", f"less than {figure.floor:g} {figure.unit} apart"
    if old.interval is None or new.interval is None:
        return "unknown", "no interval to tell it from noise: one trial has none"
    if old.interval[0] <= new.interval[1] and new.interval[0] <= old.interval[1]:
        return "same", "the 95 % intervals meet"
    better = (new.mean > old.mean) == figure.larger_is_better
    why = f"beyond {100 * limit:.0f} %, and the 95 % intervals do not meet"
    return "improved" if better else "regressed", why


def _change(old: float, new: float) -> float:
    """The larger one / the smaller one - 1."""
    smaller, larger = sorted((old, new))
    if smaller == larger:
        return 0.0
    return larger / smaller - 1 if smaller > 0 else math.inf


def _of_figures(name: str, old: Figures, new: Figures) -> list[Change]:
    return [judged(name, key, old.get(key), new.get(key)) for key in dict.fromkeys((*old, *new))]


def _of_rows(old: Row, new: Row) -> list[Change]:
    """A format in two comparisons; where its status changed, that and the figures of both."""
    before, after = of_row(old), of_row(new)
    if old.status == new.status:
        return _of_figures(old.name, before, after)
    shared = [key for key in before if key in after]
    return [_status(old, new), *(judged(old.name, k, before[k], after[k]) for k in shared)]


def _status(old: Row, new: Row) -> Change:
    """A format that was measured and now fails or misses its gate is a regression too.

    One that is unavailable says something of the machine, not of the format.
    """
    verdict: Verdict = "unknown"
    if "unavailable" not in (old.status, new.status):
        if old.status == "measured":
            verdict = "regressed"
        elif new.status == "measured":
            verdict = "improved"
    return Change(
        format=old.name,
        figure=STATUS,
        unit="",
        old=None,
        new=None,
        ratio=None,
        verdict=verdict,
        why=f"{old.status} before, {new.status} now: {new.reason or old.reason}",
    )
