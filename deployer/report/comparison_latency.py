"""Latency distributions and goodput of a comparison -> strips and bars, in percent. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from deployer.comparison import SPREAD, Comparison, Latency
from deployer.report import comparison_figures as figures
from deployer.report import words
from deployer.report.charts import Tick, axis, percent
from deployer.report.comparison_axes import log_values, written

_ENDS = (5, 25, 50, 75, 95)
_LOG_FROM = 6.0
"""Latencies that differ by more than this factor are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Band:
    """A distribution: its 5th to 95th percentile, the middle half of it, and its median.

    Starts and lengths in percent; p50 and p95 are those of the trials, in words.
    """

    start: float
    length: float
    middle: float
    half: float
    median: float
    p50: str
    p95: str
    title: str


@dataclass(frozen=True)
class Strips:
    """One latency of every format: its name, one user, and loaded."""

    rows: tuple[tuple[str, Band | None, Band | None], ...] = ()
    ticks: tuple[Tick, ...] = ()
    logarithmic: bool = False


@dataclass(frozen=True)
class Bar:
    """A share as a bar, its interval from `low` with `length`, in percent."""

    name: str
    share: float
    shown: str
    low: float | None = None
    length: float = 0.0


def strips(comparison: Comparison, field: str) -> Strips:
    """The latency `field` ("ttft", "tpot" or "e2e") of every measured format."""
    found = [
        (
            row.name,
            _drawable(getattr(row.serving.single, field)),
            _drawable(getattr(row.serving.loaded, field)),
        )
        for row in comparison.measured
        if row.serving
    ]
    ends = [v for _, *pair in found for latency in pair if latency for v in _percentiles(latency)]
    if not ends:
        return Strips()
    at, ticks, logarithmic = _scale(min(ends), max(ends))
    rows = tuple((name, _band(alone, at), _band(loaded, at)) for name, alone, loaded in found)
    return Strips(rows, ticks, logarithmic)


def _drawable(latency: Latency | None) -> Latency | None:
    """A latency whose percentiles are all there, and above 0."""
    if latency is None or len(latency.spread) != len(SPREAD) or _percentiles(latency)[0] <= 0:
        return None
    return latency


def _percentiles(latency: Latency) -> list[float]:
    return [latency.spread[SPREAD.index(share)] for share in _ENDS]


def _scale(low: float, high: float) -> tuple[Callable[[float], float], tuple[Tick, ...], bool]:
    """Where a latency in milliseconds lies, the ticks, and whether the axis is logarithmic."""
    if high / low <= _LOG_FROM:
        top = high * 1.04
        return lambda v: percent(v, 0, top), axis(0, top, 5, "ms"), False
    low, high = low / 1.1, high * 1.1

    def at(value: float) -> float:
        return percent(math.log(value), math.log(low), math.log(high))

    values = log_values(low, high)
    labels = [written(value) for value in values[:-1]] + [f"{written(values[-1])} ms"]
    return at, tuple(Tick(at(v), text) for v, text in zip(values, labels, strict=True)), True


def _band(latency: Latency | None, at: Callable[[float], float]) -> Band | None:
    if latency is None:
        return None
    p5, p25, p50, p75, p95 = map(at, _percentiles(latency))
    told = [words.ms(value) for value in _percentiles(latency)]
    return Band(
        start=p5, length=p95 - p5, middle=p25, half=p75 - p25, median=p50,
        p50=words.ms(latency.p50.mean), p95=words.ms(latency.p95.mean),
        title=f"of all trials' requests: p5 {told[0]}, p25 {told[1]}, median {told[2]}, "
        f"p75 {told[3]}, p95 {told[4]}",
    )  # fmt: skip


def goodput(comparison: Comparison) -> tuple[Bar, ...]:
    """Each format's share of good requests under load, in the order of the rows."""
    column = figures.BY_NAME["goodput_loaded_share"]
    bars = []
    for row in comparison.measured:
        figure = column.read(row)
        if figure is None:
            continue
        low, length = None, 0.0
        if figure.low is not None and figure.high is not None and figure.high > figure.low:
            low = max(0.0, 100 * figure.low)
            length = min(100.0, 100 * figure.high) - low
        bars.append(Bar(row.name, 100 * figure.value, words.share(figure.value), low, length))
    return tuple(bars)
