"""Numbers -> positions: what the page's charts draw, in percent of the plot's width and height.

Shapes stretch with the page and labels are text beside them, so that letters keep their size on
a narrow screen. Pure; no markup here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deployer.metrics import MEASURED, Sample, percentile, tokens_within, ttft

FEW = 20
"""Below this many values a histogram says nothing and every value is drawn as a dot."""
MOST_BARS = 1200
MOST_LANES = 48


@dataclass(frozen=True)
class Tick:
    """A label at `at` percent of an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Shape:
    """A rectangle in percent, y from the top; `kind` is its class, `title` its tooltip."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str = ""


@dataclass(frozen=True)
class Distribution:
    """A histogram, or dots where there are few values, with its 50th and 95th percentile."""

    n: int
    bars: tuple[Shape, ...] = ()
    dots: tuple[Tick, ...] = ()
    marks: tuple[Tick, ...] = ()
    ticks: tuple[Tick, ...] = ()
    top: int = 0


@dataclass(frozen=True)
class Timeline:
    """Requests over time: a bar each in lanes, or dots of TTFT where there are too many."""

    bars: tuple[Shape, ...] = ()
    dots: tuple[Shape, ...] = ()
    ticks: tuple[Tick, ...] = ()
    levels: tuple[Tick, ...] = ()
    warmup: float = 0.0
    end: float = 100.0
    lanes: int = 0


@dataclass(frozen=True)
class Rate:
    """Output tokens per second over time: an SVG path and its axes; `mean` from the top."""

    path: str = ""
    ticks: tuple[Tick, ...] = ()
    levels: tuple[Tick, ...] = ()
    mean: float | None = None


def nice_step(span: float, parts: int) -> float:
    """A step of 1, 2, 2.5 or 5 times a power of ten that cuts `span` into about `parts`."""
    raw = span / max(parts, 1)
    if raw <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * m for m in (1.0, 2.0, 2.5, 5.0, 10.0) if raw <= power * m * 1.0001)


def axis(low: float, high: float, parts: int = 5, unit: str = "") -> tuple[Tick, ...]:
    """Ticks at round numbers from `low` to `high`; the last one carries the unit."""
    step = nice_step(high - low, parts)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    values = [index * step for index in range(first, last + 1)]
    labels = [f"{value:,.10g}" for value in values]
    if labels and unit:
        labels[-1] += f" {unit}"
    return tuple(
        Tick(percent(value, low, high), label) for value, label in zip(values, labels, strict=True)
    )


def distribution(values: Sequence[float]) -> Distribution:
    """Values in milliseconds; the axis starts at 0 unless that would waste half of it."""
    if not values:
        return Distribution(0)
    low, high = _range(values)
    marks = tuple(
        Tick(percent(percentile(values, p), low, high), f"p{p}")
        for p in (50, 95)
        if len(values) >= FEW or p == 50
    )
    ticks = axis(low, high, 5, "ms")
    if len(values) < FEW:
        dots = tuple(Tick(percent(v, low, high), f"{v:,.1f} ms") for v in sorted(values))
        return Distribution(len(values), dots=dots, marks=marks, ticks=ticks)
    bins = min(40, max(12, round(2 * math.sqrt(len(values)))))
    width = (high - low) / bins
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / width)))] += 1
    top = max(counts)
    bars = tuple(
        Shape(
            x=100 * i / bins + 0.15,
            y=100 - 100 * count / top,
            width=100 / bins - 0.3,
            height=100 * count / top,
            kind="bar",
            title=f"{low + i * width:,.1f} to {low + (i + 1) * width:,.1f} ms: {count}",
        )
        for i, count in enumerate(counts)
        if count
    )
    return Distribution(len(values), bars=bars, marks=marks, ticks=ticks, top=top)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    low = 0.0 if low < high / 2 else low
    pad = (high - low) * 0.04 or max(high * 0.05, 0.5)
    return (max(0.0, low - pad) if low else 0.0), high + pad


def timeline(samples: Sequence[Sample], duration: float) -> Timeline:
    """The requests of a run whose measurement took `duration` seconds."""
    shown = [s for s in samples if s.closed > s.sent]
    if not shown:
        return Timeline()
    last = max(s.closed for s in shown)
    start = min((s.sent for s in shown if s.phase == MEASURED), default=0.0)
    common = {
        "ticks": axis(0, last, 8, "s"),
        "warmup": percent(start, 0, last),
        "end": min(100.0, percent(start + duration, 0, last)),
    }
    lanes = _lanes(shown)
    count = max(lanes) + 1
    if count > MOST_LANES or len(shown) > MOST_BARS:
        dots, levels = _scatter(shown, last)
        return Timeline(dots=dots, levels=levels, **common)  # type: ignore[arg-type]
    bars = [
        bar
        for sample, lane in zip(shown, lanes, strict=True)
        for bar in _bars(sample, lane, count, last)
    ]
    return Timeline(bars=tuple(bars), lanes=count, **common)  # type: ignore[arg-type]


def _lanes(samples: Sequence[Sample]) -> list[int]:
    """The lowest free lane of each request, in the order they were sent."""
    free_at: list[float] = []
    lanes = []
    for sample in samples:
        free = (i for i, end in enumerate(free_at) if end <= sample.sent + 1e-6)
        lane = next(free, len(free_at))
        if lane == len(free_at):
            free_at.append(0.0)
        free_at[lane] = sample.closed
        lanes.append(lane)
    return lanes


def _bars(sample: Sample, lane: int, lanes: int, last: float) -> list[Shape]:
    height = 100 / lanes
    y, thick = lane * height + height * 0.14, height * 0.72
    pale = " pale" if sample.phase != MEASURED else ""
    about = _about(sample)

    def bar(start: float, end: float, kind: str) -> Shape:
        x = percent(start, 0, last)
        return Shape(x, y, max(percent(end, 0, last) - x, 0.15), thick, kind + pale, about)

    if not sample.ok:
        return [bar(sample.sent, sample.closed, "failed")]
    first, end = sample.first or sample.closed, sample.last or sample.closed
    return [bar(sample.sent, first, "wait"), bar(first, end, "stream")]


def _about(sample: Sample) -> str:
    if not sample.ok:
        return f"{sample.error} after {sample.closed - sample.sent:.2f} s"
    tokens = "?" if sample.output_tokens is None else sample.output_tokens
    first, last = sample.first or sample.closed, sample.last or sample.closed
    return f"TTFT {first - sample.sent:.3f} s, whole {last - sample.sent:.3f} s, {tokens} tokens"


def _scatter(samples: Sequence[Sample], last: float) -> tuple[tuple[Shape, ...], tuple[Tick, ...]]:
    step = max(1, len(samples) // MOST_BARS)
    times = [(s, (ttft(s) or 0.0) * 1000) for s in samples[::step]]
    high = (max((t for s, t in times if s.ok), default=0.0) or 1.0) * 1.08
    dots = tuple(
        Shape(
            x=percent(s.sent, 0, last),
            y=100 - percent(t, 0, high) if s.ok else 0.0,
            width=0,
            height=0,
            kind=("wait" if s.ok else "failed") + (" pale" if s.phase != MEASURED else ""),
            title=_about(s),
        )
        for s, t in times
    )
    return dots, axis(0, high, 4, "ms")


def rate(samples: Sequence[Sample], mean: float | None) -> Rate:
    """Output tokens per second, in bins of one second or a sixtieth of the run."""
    known = [s for s in samples if s.output_tokens and s.chunks]
    if not known:
        return Rate()
    last = max(s.closed for s in samples)
    bins = min(60, max(4, math.floor(last)))
    width = last / bins
    heights = [
        sum(tokens_within(s, i * width, (i + 1) * width) for s in known) / width
        for i in range(bins)
    ]
    high = max(*heights, mean or 0.0) * 1.12 or 1.0
    steps = [f"M 0 {100 - percent(heights[0], 0, high):.2f}"]
    for i, height in enumerate(heights):
        steps.append(f"V {100 - percent(height, 0, high):.2f} H {100 * (i + 1) / bins:.2f}")
    return Rate(
        path=" ".join(steps),
        ticks=axis(0, last, 8, "s"),
        levels=axis(0, high, 4),
        mean=None if mean is None else 100 - percent(mean, 0, high),
    )


def percent(value: float, low: float, high: float) -> float:
    """Where `value` lies between `low` and `high`, in percent; the middle where they are equal."""
    return 100 * (value - low) / (high - low) if high > low else 50.0
