"""How sure a score is: Wilson's interval, and recovery with a paired bootstrap. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deployer.quality import middle95

if TYPE_CHECKING:
    from deployer.tasks.results import TaskResult

Z95 = 1.959963984540054
RESAMPLES = 2000
SEED = 20260101
SMALL = 30
"""Fewer items than this are too few for a bootstrap to be taken at its word."""


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (E. B. Wilson, 1927); ValueError where `count` is 0."""
    if count <= 0:
        raise ValueError("no interval of no items")
    share = successes / count
    scale = 1 + Z95**2 / count
    middle = (share + Z95**2 / (2 * count)) / scale
    half = Z95 / scale * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    # At both ends the bound is exact; the arithmetic misses it by a rounding error.
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == count else min(1.0, middle + half)
    return low, high


def mean_interval(scores: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the mean: Wilson's for scores of 0 and 1, else by bootstrap."""
    if all(score in (0, 1) for score in scores):
        return wilson(round(sum(scores)), len(scores))
    means = [total / len(scores) for total, _ in _resampled([(score, 0.0) for score in scores])]
    return middle95(means)


@dataclass(frozen=True)
class Recovery:
    """Score of the quantized model / score of the baseline, on the same items.

    `low` and `high` are a 95 % interval; all three are None where the baseline scored nothing.
    `better` and `worse` count the items on which the two differ. `note` says what a reader must
    know before trusting the figure, "" where nothing.
    """

    task: str
    value: float | None
    low: float | None
    high: float | None
    better: int
    worse: int
    count: int
    note: str = ""


def recovery(result: TaskResult, baseline: TaskResult) -> Recovery:
    """Compare two runs of one task; ValueError where they did not see the same items.

    Items are drawn in pairs, so that what is hard for both models does not widen the interval.
    Where no item differs a bootstrap would say "exactly 1"; then the interval is what the number
    of items allows: a share of differing items so high that seeing none has a chance of 2.5 %.
    """
    before = {item.id: item.score for item in baseline.items}
    after = {item.id: item.score for item in result.items}
    if before.keys() != after.keys() or result.metric != baseline.metric:
        raise ValueError(f"the two runs of {result.name} did not see the same items")
    pairs = [(after[name], before[name]) for name in before]
    better = sum(a > b for a, b in pairs)
    worse = sum(a < b for a, b in pairs)
    counts = (better, worse, len(pairs))
    if baseline.value == 0:
        note = "the baseline solves no item; nothing can be said of what is kept"
        return Recovery(result.name, None, None, None, *counts, note)
    value = result.value / baseline.value
    if better == worse == 0:
        unseen = (1 - 0.025 ** (1 / len(pairs))) / baseline.value
        note = f"no item of {len(pairs)} differs; the interval is what so many items allow"
        return Recovery(result.name, value, max(0.0, 1 - unseen), 1 + unseen, *counts, note)
    low, high, without = _paired(pairs)
    return Recovery(result.name, value, low, high, *counts, _caution(len(pairs), without))


def _paired(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, int]:
    """The bootstrap interval of the ratio of means, and how many resamples had no ratio."""
    sums = _resampled(pairs)
    ratios = [after / before for after, before in sums if before > 0]
    return *middle95(ratios), len(sums) - len(ratios)


def _resampled(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The two sums of each bootstrap resample, the same ones each time.

    Scores take few values, so it is drawn how often each distinct pair comes up (a multinomial),
    which is the same as drawing the items one by one, and quick for tasks of many thousands.
    """
    import numpy as np  # only here: it is slow to import

    distinct, seen = np.unique(np.asarray(pairs, dtype=float), axis=0, return_counts=True)
    chance = np.random.default_rng(SEED)
    shares = seen / seen.sum()
    sums = chance.multinomial(len(pairs), shares, size=RESAMPLES) @ distinct
    return [(float(after), float(before)) for after, before in sums]


def _caution(count: int, without: int) -> str:
    said = []
    if count < SMALL:
        said.append(f"only {count} items: the interval is rough")
    if without:
        said.append(f"{without} of {RESAMPLES} resamples had no baseline success and were left out")
    return "; ".join(said)
