"""Numbers -> positions of the charts of several levels of load, and of errors over time. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deployer.metrics import Sample
from deployer.report import words
from deployer.report.charts import Shape, Tick, axis, percent
from deployer.results import Stage

LOG_FROM = 20.0
"""Where the largest value is so many times the smallest, the axis is logarithmic."""


@dataclass(frozen=True)
class Point:
    """A stage at `x`, `y` percent, y from the top; `kind` is its class, `title` its tooltip."""

    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class Line:
    """An SVG path through the stages in the order of their rates."""

    path: str
    kind: str


@dataclass(frozen=True)
class Curve:
    """Lines over a common axis; `knee` is the place of the knee in percent of the width."""

    lines: tuple[Line, ...] = ()
    points: tuple[Point, ...] = ()
    ticks: tuple[Tick, ...] = ()
    levels: tuple[Tick, ...] = ()
    knee: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Errors:
    """Failed requests over time, a bar for each bin, from the start of the load."""

    bars: tuple[Shape, ...] = ()
    ticks: tuple[Tick, ...] = ()
    levels: tuple[Tick, ...] = ()


Figure = Callable[[Stage], float | None]


def latency_curve(stages: Sequence[Stage], knee: int | None) -> Curve:
    """TTFT, median and p95, over the output tokens per second that were reached."""
    return _curve(
        [(s, s.throughput.output_tokens_per_s) for s in stages],
        {"median": lambda s: s.latency_ms.ttft.p50, "p95": lambda s: s.latency_ms.ttft.p95},
        stages[knee] if knee is not None else None,
        "tok/s", "ms", may_be_log=True,
    )  # fmt: skip


def goodput_curve(stages: Sequence[Stage], knee: int | None) -> Curve:
    """Good requests per second over those that were sent; what was sent is the straight line."""
    return _curve(
        [(s, s.offered) for s in stages],
        {"sent": lambda s: s.offered, "good": lambda s: s.goodput.requests_per_s},
        stages[knee] if knee is not None else None,
        "requests/s", "/s",
    )  # fmt: skip


def _curve(
    placed: Sequence[tuple[Stage, float | None]],
    figures: dict[str, Figure],
    knee: Stage | None,
    x_unit: str,
    y_unit: str,
    may_be_log: bool = False,
) -> Curve:
    at = {
        id(stage): x
        for stage, x in placed
        if x is not None and all(figure(stage) is not None for figure in figures.values())
    }
    shown = sorted((s for s, _ in placed if id(s) in at), key=lambda stage: stage.target)
    if len(shown) < 2:
        return Curve()
    values = [value for f in figures.values() for s in shown if (value := f(s)) is not None]
    right, log = max(at.values()) * 1.05 or 1.0, may_be_log and _is_wide(values)
    low, high = (min(values) / 1.3, max(values) * 1.3) if log else (0.0, max(values) * 1.1 or 1.0)

    def y(value: float) -> float:
        if log:
            return 100 - percent(math.log(value), math.log(low), math.log(high))
        return 100 - percent(value, low, high)

    lines, points = [], []
    for kind, figure in figures.items():
        places = [(percent(at[id(s)], 0, right), y(figure(s) or low), s) for s in shown]
        path = " L ".join(f"{x:.2f} {top:.2f}" for x, top, _ in places)
        lines.append(Line(f"M {path}", kind))
        points += [Point(x, top, kind, _about(s)) for x, top, s in places]
    return Curve(
        lines=tuple(lines),
        points=tuple(points),
        ticks=axis(0, right, 6, x_unit),
        levels=_log_axis(low, high, y_unit) if log else axis(low, high, 4, y_unit),
        knee=percent(at[id(knee)], 0, right) if knee is not None and id(knee) in at else None,
        log=log,
    )


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > LOG_FROM


def _log_axis(low: float, high: float, unit: str) -> tuple[Tick, ...]:
    """Ticks at 1, 10, 100, …; also at 3 between them where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if len(powers) > 4 else (1, 3)
    values = [step * 10.0**power for power in powers for step in steps]
    inside = [value for value in values if low <= value <= high]
    span = (math.log(low), math.log(high))
    return tuple(Tick(percent(math.log(v), *span), f"{v:,.10g} {unit}") for v in inside)


def _about(stage: Stage) -> str:
    latency = stage.latency_ms.ttft
    state = ", saturated" if stage.saturated else ""
    return (
        f"{stage.name}{state}: TTFT {words.pair_of(latency.p50, latency.p95)}, "
        f"{words.rate(stage.throughput.output_tokens_per_s)} tok/s, "
        f"goodput {words.share(stage.goodput.share)}"
    )


def errors(samples: Sequence[Sample]) -> Errors:
    """Failed requests by the time they ended, in bins of a second or a sixtieth of the run."""
    failed = [s for s in samples if s.error and s.error != "cutoff"]
    if not failed:
        return Errors()
    last = max(s.closed for s in samples) or 1.0
    bins = min(60, max(4, math.floor(last)))
    found: list[Counter[str]] = [Counter() for _ in range(bins)]
    for s in failed:
        found[min(bins - 1, max(0, int(bins * s.closed / last)))][str(s.error)] += 1
    top = max(each.total() for each in found)
    bars = tuple(
        Shape(
            x=100 * i / bins + 0.1,
            y=100 - 92 * each.total() / top,
            width=100 / bins - 0.2,
            height=92 * each.total() / top,
            kind="failed",
            title=", ".join(f"{number} {name}" for name, number in each.most_common()),
        )
        for i, each in enumerate(found)
        if each
    )
    level = Tick(92.0, f"{top:,}")
    return Errors(bars, axis(0, last, 8, "s"), (Tick(0.0, "0"), level))
