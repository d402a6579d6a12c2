"""Which of two figures is better, which differences are noise, and which formats no other beats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from deployer.comparison import Estimate, half_width


def tied(ours: Estimate, theirs: Estimate) -> bool:
    """Whether two figures of interleaved trials differ by no more than noise.

    Trial i of both ran side by side, so their ratio is free of what changed between trials: the
    two are tied where the 95 % interval of the mean log ratio holds 0. One trial tells no noise,
    and nothing is called a tie for want of knowing better: then only equal values are tied.
    """
    pairs = list(zip(ours.values, theirs.values, strict=False))
    uneven = len(ours.values) != len(theirs.values)
    if uneven or len(pairs) == 1 or any(min(pair) <= 0 for pair in pairs):
        return _overlap(ours, theirs)
    logs = [math.log(a / b) for a, b in pairs]
    return abs(math.fsum(logs) / len(logs)) <= half_width(logs)


def _overlap(ours: Estimate, theirs: Estimate) -> bool:
    if None in (ours.low, ours.high, theirs.low, theirs.high):
        return ours.mean == theirs.mean
    assert ours.low is not None and ours.high is not None
    assert theirs.low is not None and theirs.high is not None
    return ours.low <= theirs.high and theirs.low <= ours.high


def best(figures: Mapping[str, Estimate], larger: bool) -> tuple[str, ...]:
    """The name of the best figure, then those tied with it, best first."""
    order = sorted(figures, key=lambda name: figures[name].mean, reverse=larger)
    return tuple(
        name for name in order if name == order[0] or tied(figures[name], figures[order[0]])
    )


def pareto(points: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """Names of the points that no other point beats, in the order given.

    Smaller is better in every coordinate. A point is beaten by one that is nowhere larger and
    somewhere smaller.
    """
    return tuple(
        name
        for name, point in points.items()
        if not any(_beats(other, point) for key, other in points.items() if key != name)
    )


def _beats(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
