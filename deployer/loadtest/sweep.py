"""Which rate a sweep tries next, and where the knee is. Pure.

A rate is saturated when the server no longer keeps up with it (measure.saturated). The rates double
until one is saturated, or halve until one is not; then the gap between the two is halved until they
are less than a fifth apart. The knee is the highest rate below the lowest saturated one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from deployer.results import Stage

MOST_STAGES = 16
MOST_HALVINGS = 4
APART = 1.2
HIGHEST = 10_000.0


def next_rate(stages: Sequence[Stage]) -> float | None:
    """Requests per second to try after these; None where the sweep is over."""
    if len(stages) >= MOST_STAGES:
        return None
    bad = min((s.target for s in stages if s.saturated), default=None)
    good = _highest_good(stages)
    if bad is None:
        doubled = 2 * (good or 1.0)
        return _rounded(doubled) if doubled <= HIGHEST else None
    if good is None:
        return _rounded(bad / 2) if len(stages) <= MOST_HALVINGS else None
    return _rounded(math.sqrt(good * bad)) if bad / good > APART else None


def knee(stages: Sequence[Stage]) -> int | None:
    """Index of the stage with the knee; None where even the lowest rate was too much."""
    good = _highest_good(stages)
    return next((i for i, s in enumerate(stages) if s.target == good), None)


def _highest_good(stages: Sequence[Stage]) -> float | None:
    bad = min((s.target for s in stages if s.saturated), default=math.inf)
    return max((s.target for s in stages if not s.saturated and s.target < bad), default=None)


def _rounded(rate: float) -> float:
    """Three digits, so that a rate reads the same wherever it is shown."""
    return float(f"{rate:.3g}")
