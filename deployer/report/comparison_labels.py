"""Where the names of points in a chart stand, so that none covers another one. Pure.

Points lie at percentages of a plot that stretches with the page, names keep their size in pixels.
So a place is tried at several widths of the plot, and must be free at each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LINE = 16
"""Height of a name in pixels."""
DOT = 7
"""Half the size of a dot in pixels."""
CLOSE = 18
"""Within so many pixels of another dot, a name could be taken for that one's."""
_LETTER, _WIDE_LETTER = 7.7, 13.0
_EAST_ASIAN = 0x2E80
_RINGS = (10, 22, 36, 52, 70, 90, 112)
"""How many pixels further out a name is tried each time."""
_DIRECTIONS = (0, 180, 270, 90, 315, 45, 225, 135, 338, 22, 202, 158)
"""Degrees, clockwise from the right."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""
Line = tuple[tuple[float, float], tuple[float, float]]
"""The ends of a level or upright line, in percent."""


@dataclass(frozen=True)
class Label:
    """Where a name stands, in pixels from its point to its left end and to its middle height.

    With `ends`, dx is its right end. `leader` is where a line from the point to it ends.
    """

    dx: float
    dy: float
    leader: tuple[float, float] | None = None
    ends: bool = False


def text_width(text: str) -> float:
    """Pixels that a text takes at the size of a chart's names, rather too many than too few."""
    return sum(_WIDE_LETTER if ord(letter) >= _EAST_ASIAN else _LETTER for letter in text) + 2


def place(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    widths: Sequence[float],
    height: float,
    lines: Sequence[Line] = (),
) -> tuple[Label, ...]:
    """A label for each point, in their order.

    `points` are (x, y) in percent, y from the top; `widths` those the plot may have and `height`
    its height, in pixels. Names keep off the `lines`, too. Where no place is free, the one that
    covers least is taken.
    """
    canvases = [_Canvas(points, lines, width, height) for width in widths]
    crowded = sorted(range(len(points)), key=lambda i: (-_neighbours(points, i), points[i]))
    found: dict[int, Label] = {}
    for index in crowded:
        size = text_width(names[index])
        found[index] = _choice(canvases, index, size)
        for canvas in canvases:
            canvas.taken.append(canvas.box(index, found[index], size))
    return tuple(found[index] for index in range(len(points)))


def _choice(canvases: Sequence[_Canvas], index: int, size: float) -> Label:
    """The free place beside the point that is furthest from other points, else one further out."""

    def free(label: Label) -> bool:
        return not any(canvas.covered(index, label, size) for canvas in canvases)

    beside = [label for label in _beside(size) if free(label)]
    if beside:
        return min(beside, key=lambda label: sum(c.crowd(index, label, size) for c in canvases))
    places = (*_beside(size), *_around(size))
    found = next((label for label in places if free(label)), None)
    return found or min(
        places, key=lambda label: sum(c.covered(index, label, size) for c in canvases)
    )


def _neighbours(points: Sequence[tuple[float, float]], index: int) -> int:
    x, y = points[index]
    return sum(abs(x - a) < 18 and abs(y - b) < 12 for a, b in points)


def _beside(size: float) -> Iterator[Label]:
    """The places next to a point, the best first."""
    near, below = DOT + 2, DOT + LINE / 2
    yield from (Label(near, 0), Label(-near, 0, ends=True))
    for dy in (below, -below):
        yield from (Label(4, dy), Label(-4, dy, ends=True), Label(round(-size / 2, 1), dy))


def _around(size: float) -> Iterator[Label]:
    """Places further out, to which a line leads."""
    for ring in _RINGS:
        for degrees in _DIRECTIONS:
            angle = math.radians(degrees)
            middle = math.sin(angle) * (DOT + LINE / 2 + ring)
            left = math.cos(angle) * (DOT + 2 + ring + size / 2) - size / 2
            end_x = min(max(0.0, left - 1), left + size)
            end_y = min(max(0.0, middle - LINE / 2), middle + LINE / 2)
            end = (round(end_x, 1), round(end_y, 1))
            if left + size < 0:
                yield Label(round(left + size, 1), round(middle, 1), end, ends=True)
            else:
                yield Label(round(left, 1), round(middle, 1), end)


class _Canvas:
    """What is taken already in a plot of one width."""

    def __init__(
        self,
        points: Sequence[tuple[float, float]],
        lines: Sequence[Line],
        width: float,
        height: float,
    ) -> None:
        self.width, self.height = width, height
        across, down = width / 100, height / 100
        self.points = [(x * across, y * down) for x, y in points]
        self.taken: list[Box] = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in self.points]
        for (a, b), (c, d) in lines:
            left, right = sorted((a * across, c * across))
            top, bottom = sorted((b * down, d * down))
            self.taken.append((left - 1, top - 1, right + 1, bottom + 1))

    def box(self, index: int, label: Label, size: float) -> Box:
        x, y = self.points[index]
        left, middle = x + label.dx - (size if label.ends else 0), y + label.dy
        return left, middle - LINE / 2, left + size, middle + LINE / 2

    def covered(self, index: int, label: Label, size: float) -> float:
        """Square pixels of the label over something else or outside."""
        left, top, right, bottom = box = self.box(index, label, size)
        outside = max(0, -left) + max(0, right - self.width)
        outside += max(0, -top - LINE / 2) + max(0, bottom - self.height)
        return outside * LINE + sum(_shared(box, other) for other in self.taken)

    def crowd(self, index: int, label: Label, size: float) -> float:
        """Square pixels of other points' surroundings under the label."""
        box = self.box(index, label, size)
        return sum(
            _shared(box, (x - CLOSE, y - CLOSE, x + CLOSE, y + CLOSE))
            for other, (x, y) in enumerate(self.points)
            if other != index
        )


def _shared(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    if a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]:
        return 0.0
    return (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))
