"""Numbers of a quality record -> positions, in percent of the plot, as in `charts`. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deployer.metrics import percentile
from deployer.report.charts import Shape, Tick, axis, percent

SMALLEST = 1e-7
"""A KL divergence below this is drawn as this: float16 logits tell no smaller ones apart."""
_BINS_PER_DECADE = 6
_LABEL = (11.0, 6.0)
"""Room for a label, in percent of the plot's width and height."""
_DOT = 1.5
"""The same for a dot, and how far its label begins from its middle."""
_SHIFTS = (0, 12, -12, 20, -20, 32, -32, 48, 64)
"""Pixels down by which a label may stand off its dot; 16 are a line."""
Box = tuple[float, float, float]
"""Left, right and middle height, in percent."""


@dataclass(frozen=True)
class Dot:
    """A labelled point, y from the top; `side` of its label, `shift` in pixels down."""

    x: float
    y: float
    title: str
    label: str = ""
    side: str = "right"
    shift: int = 0


@dataclass(frozen=True)
class Plot:
    """Dots, bars and a line over two axes; `mark` is a value's height from the top."""

    dots: tuple[Dot, ...] = ()
    bars: tuple[Shape, ...] = ()
    named: tuple[Dot, ...] = ()
    path: str = ""
    ticks: tuple[Tick, ...] = ()
    levels: tuple[Tick, ...] = ()
    marks: tuple[Tick, ...] = ()
    mark: float | None = None
    n: int = 0


def log_axis(low: float, high: float) -> tuple[Tick, ...]:
    """Ticks at powers of ten; also at their double and fivefold where there are few powers."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    values = [m * 10.0**power for power in range(first, last + 1) for m in steps]
    return tuple(
        Tick(percent(math.log(v), math.log(low), math.log(high)), f"{v:.3g}")
        for v in values
        if low * 0.999 <= v <= high * 1.001
    )


def windows_scatter(windows: Sequence[Mapping[str, float]]) -> Plot:
    """Perplexity of each window: the 16-bit model's to the right, the model's upwards.

    Both axes have the same range, so that equal values lie on the diagonal.
    """
    pairs = [(w["baseline_perplexity"], w["perplexity"]) for w in windows]
    values = [value for pair in pairs for value in pair]
    if not values or not all(map(math.isfinite, values)):
        return Plot()
    low, high = min(values), max(values)
    pad = (high - low) * 0.08 or high * 0.1
    low, high = max(0.0, low - pad), high + pad
    dots = tuple(
        Dot(
            percent(x, low, high),
            100 - percent(y, low, high),
            f"window {number}: {y:,.2f}, 16-bit {x:,.2f}",
        )
        for number, (x, y) in enumerate(pairs, 1)
    )
    return Plot(dots, ticks=axis(low, high, 5), levels=axis(low, high, 5), n=len(dots))


def windows_divergence(windows: Sequence[Mapping[str, float]], mean: float | None) -> Plot:
    """Mean KL divergence of each window as a bar, in the order of the text."""
    values = [w["kl_divergence"] for w in windows if "kl_divergence" in w]
    if not values or not all(map(math.isfinite, values)):
        return Plot()
    high = max(*values, mean or 0.0, SMALLEST) * 1.1
    width, gap = 100 / len(values), min(1.0, 20 / len(values))
    bars = tuple(
        Shape(
            i * width + gap / 2,
            100 - percent(value, 0, high),
            width - gap,
            percent(value, 0, high),
            "bar",
            f"window {i + 1}: {value:.4g} nats",
        )
        for i, value in enumerate(values)
    )
    shown = range(0, len(values), max(1, math.ceil(len(values) / 8)))
    return Plot(
        bars=bars,
        ticks=tuple(Tick((i + 0.5) * width, str(i + 1)) for i in shown),
        levels=axis(0, high, 4),
        mark=None if mean is None else 100 - percent(mean, 0, high),
        n=len(values),
    )


def token_divergence(values: Sequence[float]) -> Plot:
    """Histogram of the KL divergence of single tokens (nats), on a logarithmic axis."""
    known = [max(value, SMALLEST) for value in values if math.isfinite(value)]
    if not known:
        return Plot()
    low = 10.0 ** math.floor(math.log10(min(known)))
    high = 10.0 ** math.floor(math.log10(max(known)) + 1)
    bins = round(math.log10(high / low)) * _BINS_PER_DECADE
    places = [percent(math.log(v), math.log(low), math.log(high)) for v in known]
    counts = [0] * bins
    for place in places:
        counts[min(bins - 1, int(place / 100 * bins + 1e-9))] += 1
    edges = [low * (high / low) ** (i / bins) for i in range(bins + 1)]
    bars = tuple(
        Shape(
            100 * i / bins + 0.15,
            100 - 100 * count / max(counts),
            100 / bins - 0.3,
            100 * count / max(counts),
            "bar",
            f"{edges[i]:.2g} to {edges[i + 1]:.2g} nats: {count:,}",
        )
        for i, count in enumerate(counts)
        if count
    )
    marks = tuple(Tick(percentile(places, p), name) for p, name in ((50, "median"), (99, "p99")))
    return Plot(bars=bars, ticks=log_axis(low, high), marks=marks, n=len(known))


def sensitivity_curve(sensitivity: Mapping[str, Any]) -> Plot:
    """Bits per weight to the right, KL divergence upwards (logarithmic); references are named."""
    curve = sorted(
        (p["bits_per_weight"], max(p["kl_divergence"], SMALLEST))
        for p in sensitivity["curve"]
        if p["kl_divergence"] > 0  # all at 16 bits costs nothing, and has no place on a log axis
    )
    named = [
        (p["bits_per_weight"], max(p["kl_divergence"], SMALLEST), str(p["name"]))
        for p in sensitivity.get("references", ())
    ]
    points = [*curve, *((x, y) for x, y, _ in named)]
    if not curve or not all(map(math.isfinite, (v for point in points for v in point))):
        return Plot()
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    pad = (right - left) * 0.06 or 0.5
    left, right = left - pad, right + pad
    low, high = min(y for _, y in points) / 1.4, max(y for _, y in points) * 1.4

    def place(x: float, y: float) -> tuple[float, float]:
        height = percent(math.log(y), math.log(low), math.log(high))
        return percent(x, left, right), 100 - height

    def about(x: float, y: float) -> str:
        return f"{x:.2f} bits per weight, {y:.4g} nats"

    line = [place(*point) for point in curve]
    return Plot(
        dots=tuple(Dot(*at, about(*point)) for at, point in zip(line, curve, strict=True)),
        named=_apart([Dot(*place(x, y), f"{name}: {about(x, y)}", name) for x, y, name in named]),
        path="M " + " L ".join(f"{x:.2f} {y:.2f}" for x, y in line),
        ticks=axis(left, right, 6),
        levels=log_axis(low, high),
        n=len(curve),
    )


def _apart(dots: Sequence[Dot]) -> tuple[Dot, ...]:
    """The dots, each with its label at the first free place; where none is, to the right."""
    taken: list[Box] = [(dot.x - _DOT, dot.x + _DOT, dot.y) for dot in dots]
    placed: list[Dot] = []
    for dot in sorted(dots, key=lambda d: (d.y, d.x)):
        tries = [replace(dot, side=side, shift=s) for s in _SHIFTS for side in ("right", "left")]
        inside = [t for t in tries if _box(t)[0] >= 0 and _box(t)[1] <= 100]
        free = (t for t in inside if not any(_touch(_box(t), box) for box in taken))
        placed.append(next(free, dot))
        taken.append(_box(placed[-1]))
    return tuple(placed)


def _box(dot: Dot) -> Box:
    """Where a dot's label stands."""
    left = dot.x + _DOT if dot.side == "right" else dot.x - _DOT - _LABEL[0]
    return left, left + _LABEL[0], dot.y + dot.shift * _LABEL[1] / 16


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and abs(a[2] - b[2]) < _LABEL[1]


def sensitive_groups(
    sensitivity: Mapping[str, Any], most: int
) -> tuple[str, list[tuple[str, float, float]]]:
    """(type, [(group, KL divergence in nats, percent of the largest)]) of the `most` sensitive.

    The type is the one that costs most among those that most groups were measured with.
    """
    groups = sensitivity["groups"]
    totals: dict[str, list[float]] = {}
    for group in groups:
        for name, value in group["kld"].items():
            totals.setdefault(name, []).append(value)
    if not totals:
        return "", []
    chosen = max(totals, key=lambda name: (len(totals[name]), sum(totals[name])))
    rows = sorted(
        ((str(g["name"]), float(g["kld"][chosen])) for g in groups if chosen in g["kld"]),
        key=lambda row: -row[1],
    )[:most]
    top = max(rows[0][1], SMALLEST)
    return chosen, [(name, value, 100 * max(value, 0.0) / top) for name, value in rows]
