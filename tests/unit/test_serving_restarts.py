"""Pauses grow and are bounded, a good run shortens them, and some ends are not for repeating."""

from __future__ import annotations

from deployer.serving import causes
from deployer.serving.causes import Cause
from deployer.serving.restarts import Restarts
from deployer.serving.spec import Patience

KILLED = causes.explain(-9, "")
MEMORY = causes.explain(1, "bad_alloc")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def ends(restarts: Restarts, clock: Clock, cause: Cause, runs: int, seconds: float) -> list[object]:
    """The pauses after so many runs of `seconds` that each end for `cause`."""
    pauses: list[object] = []
    for _ in range(runs):
        restarts.became_ready()
        clock.now += seconds
        pauses.append(restarts.pause(cause))
    return pauses


def test_pauses_double_to_a_minute_and_it_is_never_given_up() -> None:
    clock = Clock()
    restarts = Restarts(Patience(), clock)
    assert ends(restarts, clock, KILLED, 8, 5.0) == [1, 2, 4, 8, 16, 32, 60, 60]
    assert ends(restarts, clock, KILLED, 2000, 5.0)[-1] == 60


def test_a_good_run_makes_them_short_again() -> None:
    clock = Clock()
    restarts = Restarts(Patience(), clock)
    assert ends(restarts, clock, KILLED, 3, 299.0) == [1, 2, 4]
    assert ends(restarts, clock, KILLED, 1, 300.0) == [1]
    assert ends(restarts, clock, KILLED, 1, 10.0) == [2]


def test_a_first_start_that_fails_is_not_repeated() -> None:
    assert Restarts(Patience(), Clock()).pause(KILLED) is None


def test_what_never_comes_up_again_is_given_up() -> None:
    clock = Clock()
    restarts = Restarts(Patience(attempts=3), clock)
    assert ends(restarts, clock, KILLED, 1, 1.0) == [1]
    assert [restarts.pause(KILLED), restarts.pause(causes.NOT_READY)] == [2, 4]
    assert restarts.pause(KILLED) is None


def test_one_that_comes_up_has_all_its_attempts_again() -> None:
    clock = Clock()
    restarts = Restarts(Patience(attempts=3), clock)
    ends(restarts, clock, KILLED, 1, 1.0)
    for _ in range(4):
        assert restarts.pause(KILLED) is not None
        assert restarts.pause(KILLED) is not None
        ends(restarts, clock, KILLED, 1, 1.0)


def test_memory_that_ran_out_is_not_asked_for_again() -> None:
    clock = Clock()
    assert ends(Restarts(Patience(), clock), clock, MEMORY, 1, 1e6) == [None]


def test_the_memory_limit_is_met_a_few_times_in_a_row() -> None:
    clock = Clock()
    restarts = Restarts(Patience(), clock)
    over = causes.over_limit(2 << 30, 1 << 30)
    assert ends(restarts, clock, over, 2, 20.0) == [1, 2]
    assert ends(restarts, clock, over, 3, 1000.0) == [1, 1, 1], "each after a good run"
    assert ends(restarts, clock, over, 3, 20.0) == [2, None, None]
