"""A comparison -> positions for the page's charts, in percent of the plot. Pure, no markup."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deployer.comparison import Comparison, Row
from deployer.ranking import pareto
from deployer.report import comparison_figures as figures
from deployer.report.charts import Tick
from deployer.report.comparison import contended
from deployer.report.comparison_axes import Across, Down
from deployer.report.comparison_figures import Column, Figure
from deployer.report.comparison_labels import Label, Line, place

HEIGHT = 400.0
"""Pixels of a front's plot on the page."""
WIDE, NARROW = (590.0, 680.0, 780.0, 880.0, 1020.0), (236.0, 300.0, 400.0, 500.0, 640.0)
"""Widths in pixels that a plot has with names in it, and with numbers instead."""
SLIDE = (820.0, 390.0)
"""Width and height of the plot of a slide, in pixels of the page: names there are set as large."""
LONGEST = 24
"""Letters of a name that are drawn."""
SHAPES = ("round", "square", "diamond", "bar")
Corners = tuple[tuple[float, float], ...]
Span = tuple[float, float] | None
"""Start and length of an interval in percent."""


@dataclass(frozen=True)
class Quality:
    """The quality of formats for a chart: smaller is better, `same` is the 16-bit model's."""

    column: Column
    same: float
    values: Mapping[str, Figure]


@dataclass(frozen=True)
class Point:
    """A format in a front; bars are (start, length) of its intervals in percent."""

    name: str
    shown: str
    number: int
    x: float
    y: float
    title: str
    shape: str
    front: bool
    across: Span
    down: Span
    wide: Label
    narrow: Label
    slide: Label


@dataclass(frozen=True)
class Front:
    """Quality over one figure, with the line that no format is beyond."""

    points: tuple[Point, ...] = ()
    line: Corners = ()
    ticks: tuple[Tick, ...] = ()
    levels: tuple[Tick, ...] = ()
    zero: float | None = None
    front: tuple[str, ...] = ()
    engines: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> str:
        """The line as SVG."""
        return "M " + " L ".join(f"{x:.2f} {y:.2f}" for x, y in self.line)


def quality_of(comparison: Comparison) -> Quality | None:
    """What the fronts show as quality: KL divergence where every format has it, else the ratio.

    The 16-bit reference of an engine has no figure; it is where nothing is lost, by definition.
    None where no format was compared with one.
    """
    others = [row for row in comparison.measured if not figures.is_reference(row)]
    for name, same in ((figures.DIVERGENCE, 0.0), (figures.RATIO, 1.0)):
        column = figures.BY_NAME[name]
        known = {row.name: f for row in others if (f := column.read(row)) is not None}
        if known and (len(known) == len(others) or name == figures.RATIO):
            references = (row.name for row in comparison.measured if figures.is_reference(row))
            return Quality(column, same, {**dict.fromkeys(references, Figure(same)), **known})
    return None


def front_of(comparison: Comparison, quality: Quality, column: Column) -> tuple[str, ...]:
    """Names of the formats that no other beats in both quality and `column`."""
    sign = -1 if column.larger else 1
    points = {
        row.name: (sign * figure.value, quality.values[row.name].value)
        for row in comparison.measured
        if row.name in quality.values and (figure := column.read(row)) is not None
    }
    return pareto(points)


def front(comparison: Comparison, column: Column) -> Front:
    """Quality over `column`, whose better side is the right one where larger is better."""
    quality = quality_of(comparison)
    rows = _drawn(comparison, quality, column)
    if quality is None or not rows:
        return Front()
    known = [figure for row in rows if (figure := column.read(row)) is not None]
    worth = [quality.values[row.name] for row in rows]
    across, down = Across(known, column.scale), Down(worth, quality.same == 0.0)
    spots = [(across.at(x.value), down.at(y.value)) for x, y in zip(known, worth, strict=True)]
    bars = [(_bar(across.at, x), _bar(down.at, y)) for x, y in zip(known, worth, strict=True)]
    names = front_of(comparison, quality, column)
    ahead = [spot for row, spot in zip(rows, spots, strict=True) if row.name in names]
    corners = _corners(ahead, bool(column.larger))
    noisy = contended(comparison)
    engines = dict(zip(dict.fromkeys(row.engine for row in rows), SHAPES * 9, strict=False))
    shown = [_cut(row.name) + (" !" if row.name in noisy else "") for row in rows]
    lines = [*itertools.pairwise(corners), *_lines(spots, bars)]
    if down.zero is not None:
        lines.append(((0.0, down.zero), (100.0, down.zero)))
    labels = _labels(shown, spots, lines)
    points = tuple(
        Point(
            name=row.name, shown=shown[n], number=n + 1, x=spots[n][0], y=spots[n][1],
            title=_about(row, column, known[n], quality), shape=engines[row.engine],
            front=row.name in names, across=bars[n][0], down=bars[n][1], **labels[n],
        )
        for n, row in enumerate(rows)
    )  # fmt: skip
    levels, zero = down.levels, down.zero
    return Front(points, corners, across.ticks, levels, zero, names, tuple(engines.items()))


def _drawn(comparison: Comparison, quality: Quality | None, column: Column) -> list[Row]:
    """The formats of which both figures are known."""
    known = quality.values if quality else {}
    return [r for r in comparison.measured if r.name in known and column.read(r) is not None]


def _labels(names: Sequence[str], spots: Sequence[tuple[float, float]], lines: Sequence[Line]
            ) -> list[dict[str, Label]]:  # fmt: skip
    """The labels of each point: with names on a wide page and a slide, with numbers on others."""
    numbers = [str(n + 1) for n in range(len(names))]
    wide = place(spots, names, WIDE, HEIGHT, lines)
    narrow = place(spots, numbers, NARROW, HEIGHT, lines)
    slide = place(spots, names, SLIDE[:1], SLIDE[1], lines)
    return [
        {"wide": w, "narrow": n, "slide": s} for w, n, s in zip(wide, narrow, slide, strict=True)
    ]


def _bar(at: Callable[[float], float], figure: Figure) -> Span:
    """(start, length) of a figure's interval, from the left or from the top."""
    if figure.low is None or figure.high is None:
        return None
    start, end = sorted((at(figure.low), at(figure.high)))
    return start, end - start


def _lines(spots: Sequence[tuple[float, float]], bars: Sequence[tuple[Span, Span]]) -> list[Line]:
    """The intervals of points as lines."""
    lines: list[Line] = []
    for (x, y), (across, down) in zip(spots, bars, strict=True):
        if across:
            lines.append(((across[0], y), (across[0] + across[1], y)))
        if down:
            lines.append(((x, down[0]), (x, down[0] + down[1])))
    return lines


def _about(row: Row, column: Column, figure: Figure, quality: Quality) -> str:
    """What stands in a point's tooltip."""
    parts = [f"{row.name} ({row.engine})", f"{with_unit(column, figure)} {column.title}"]
    if figures.is_reference(row):
        return ", ".join([*parts, "the 16-bit model that others are compared with"])
    worth = quality.values[row.name]
    return ", ".join([*parts, f"{quality.column.title} {with_unit(quality.column, worth)}"])


def with_unit(column: Column, figure: Figure) -> str:
    return f"{column.write(figure.value)} {column.unit}".strip()


def _corners(ahead: Sequence[tuple[float, float]], larger: bool) -> Corners:
    """Corners of the steps along the front, from the top: what lies behind them is beaten."""
    order = sorted(ahead, key=lambda spot: -spot[0] if larger else spot[0])
    corners = [(order[0][0], 0.0)]
    for x, y in order:
        corners += [(x, corners[-1][1]), (x, y)]
    return (*corners, (0.0 if larger else 100.0, corners[-1][1]))


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
