"""Ties, and the formats that no other beats."""

from __future__ import annotations

import random

from hypothesis import given, strategies

from deployer.comparison import Estimate, known
from deployer.ranking import best, pareto, tied


def of(*values: float) -> Estimate:
    return known(values)


def test_what_changed_for_both_is_no_difference_and_no_tie() -> None:
    """The machine was slow in the second trial: the ratio of the two did not care."""
    ours, theirs = of(100.0, 50.0, 101.0), of(80.0, 40.2, 80.6)
    assert not tied(ours, theirs)
    assert tied(ours, of(101.0, 49.5, 100.8))


def test_one_trial_tells_no_noise() -> None:
    assert not tied(of(100.0), of(100.1))
    assert tied(of(100.0), of(100.0))


def test_without_pairs_overlapping_intervals_are_a_tie() -> None:
    assert tied(of(10.0, 11.0, 12.0), of(11.0, 12.0))
    assert not tied(of(10.0, 10.1, 10.2), of(12.0, 12.1))
    assert tied(of(0.0, 0.0), of(0.0, 0.0))


def test_noise_alone_is_called_a_difference_in_five_per_cent_of_cases() -> None:
    draw = random.Random(7)
    told = 0
    for _ in range(2000):
        ours, theirs = (of(*(draw.lognormvariate(4, 0.05) for _ in range(4))) for _ in "ab")
        told += not tied(ours, theirs)
    assert 0.03 < told / 2000 < 0.07


def test_the_best_and_its_ties_come_best_first() -> None:
    figures = {
        "a": of(50.0, 51.0, 50.5),
        "b": of(99.0, 101.0, 100.0),
        "c": of(100.0, 100.5, 100.9),
    }
    assert best(figures, larger=True) == ("c", "b")
    assert best(figures, larger=False) == ("a",)


POINTS = strategies.dictionaries(
    strategies.text("abcdefgh", min_size=1, max_size=2),
    strategies.tuples(strategies.integers(0, 5), strategies.integers(0, 5)),
    min_size=1,
)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: dict[str, tuple[int, int]]) -> None:
    front = pareto(points)
    assert front
    for name, (x, y) in points.items():
        beaten = any((a <= x and b <= y) and (a, b) != (x, y) for a, b in points.values())
        assert (name in front) is not beaten
