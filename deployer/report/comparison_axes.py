"""The axes of a comparison's charts, in percent of the plot. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deployer.report.charts import Tick, axis, percent
from deployer.report.comparison_figures import Figure

SMALLEST = 1e-7
"""Divergences below are noise of the scoring, and drawn where the 16-bit model is."""
_ZERO = 94.0
"""Where a logarithmic axis has its zero, in percent from the top."""
_LOWEST = 85.0
"""Where such an axis has its smallest value."""


class Across:
    """The axis of a figure, to the right; linear, from 0 unless that would waste half of it."""

    def __init__(self, known: Sequence[Figure], scale: float) -> None:
        ends = [end * scale for end in _ends(known)]
        low, high = min(ends), max(ends)
        span = (high - low) or high or 1.0
        self.scale = scale
        self.low = 0.0 if low < high / 2 else low - span * 0.12
        self.high = high + (high - self.low) * 0.05
        self.ticks = axis(self.low, self.high, 6)

    def at(self, value: float) -> float:
        return _inside(percent(value * self.scale, self.low, self.high))


class Down:
    """The axis of quality, in percent from the top: the best values are at its foot.

    Logarithmic where `logarithmic`; then what is not above SMALLEST is at `zero`, beneath it.
    """

    def __init__(self, known: Sequence[Figure], logarithmic: bool) -> None:
        ends = _ends(known)
        above = [end for end in ends if end > SMALLEST]
        self.logarithmic = logarithmic and bool(above)
        self.zero: float | None = None
        self.foot = 100.0
        if self.logarithmic:
            if any(figure.value <= SMALLEST for figure in known):
                self.zero, self.foot = _ZERO, _LOWEST
            self.low, self.high = min(above) / 1.2, max(above) * 1.3
            values = log_values(self.low, self.high)
            self.levels = tuple(Tick(self.at(value), written(value)) for value in values)
        else:
            pad = (max(ends) - min(ends)) * 0.08 or 0.05
            self.low, self.high = min(ends) - pad, max(ends) + pad
            self.levels = tuple(Tick(100 - t.at, t.label) for t in axis(self.low, self.high, 6))

    def at(self, value: float) -> float:
        if not self.logarithmic:
            return _inside(100 - percent(value, self.low, self.high))
        if value <= SMALLEST:
            return self.foot if self.zero is None else self.zero
        share = percent(math.log(value), math.log(self.low), math.log(self.high))
        return self.foot * (1 - _inside(share) / 100)


def log_values(low: float, high: float) -> tuple[float, ...]:
    """Round values of a logarithmic axis; fewer to a decade where there are many decades."""
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades <= 2.2 else (1, 3) if decades <= 3.5 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = (step * 10.0**power for power in powers for step in steps)
    return tuple(value for value in values if low <= value <= high)


def written(value: float) -> str:
    """A round value beside an axis: "0.005", "20", "5,000"."""
    return f"{value:,.0f}" if value >= 1 else f"{value:.1g}"


def _ends(known: Sequence[Figure]) -> list[float]:
    return [end for f in known for end in (f.value, f.low, f.high) if end is not None]


def _inside(share: float) -> float:
    return min(100.0, max(0.0, share))
