"""Limits of keys: over any time never more than the limit, debts are paid, nothing leaks."""

from __future__ import annotations

from gateway_samples import Clock
from hypothesis import given
from hypothesis import strategies as st

from deployer.gateway.keys import Key
from deployer.gateway.limits import Limits


def test_no_limit_admits_all() -> None:
    limits = Limits(Clock())
    key = Key.anonymous()
    assert all(limits.admit(key) is None for _ in range(1000))


@given(
    limit=st.integers(1, 90),
    pauses=st.lists(st.floats(0, 20), min_size=1, max_size=150),
)
def test_never_more_requests_than_the_limit_and_its_burst(limit: int, pauses: list[float]) -> None:
    clock = Clock()
    limits = Limits(clock)
    key = Key(id="ops", requests_per_minute=limit)
    admitted: list[float] = []
    for pause in pauses:
        clock.pass_(pause)
        if limits.admit(key) is None:
            admitted.append(clock.now)
            limits.finish(key, 10)
    for begin in range(len(admitted)):
        for end in range(begin, len(admitted)):
            seconds = admitted[end] - admitted[begin]
            assert end - begin + 1 <= limit * (1 + seconds / 60) + 1e-6


@given(limit=st.integers(1, 100), before=st.integers(0, 110))
def test_after_the_wait_it_is_told_a_request_is_let_in(limit: int, before: int) -> None:
    clock = Clock()
    limits = Limits(clock)
    key = Key(id="ops", requests_per_minute=limit)
    for _ in range(before):
        limits.admit(key)
    wait = limits.admit(key)
    if wait is None:
        assert before < limit
        return
    assert before >= limit and 0 < wait <= 60 / limit + 1e-6
    clock.pass_(wait / 2)
    assert limits.admit(key) is not None
    clock.pass_(wait / 2)
    assert limits.admit(key) is None


def test_tokens_are_charged_afterwards_and_a_debt_is_waited_for() -> None:
    clock = Clock()
    limits = Limits(clock)
    key = Key(id="ops", tokens_per_minute=600)
    assert limits.admit(key) is None
    limits.finish(key, 1200)  # 600 below zero
    wait = limits.admit(key)
    assert wait is not None and 60.0 < wait <= 60.2
    clock.pass_(59.9)
    assert limits.admit(key) is not None
    clock.pass_(0.3)
    assert limits.admit(key) is None


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 500)), min_size=1, max_size=60))
def test_tokens_over_any_time_exceed_the_limit_by_the_last_request_only(
    uses: list[tuple[float, int]],
) -> None:
    clock = Clock()
    limits = Limits(clock)
    key = Key(id="ops", tokens_per_minute=600)
    begin, used = clock.now, 0
    for pause, tokens in uses:
        clock.pass_(pause)
        if limits.admit(key) is None:
            assert used <= 600 * (1 + (clock.now - begin) / 60) + 1e-6
            limits.finish(key, tokens)
            used += tokens


def test_requests_at_once() -> None:
    limits = Limits(Clock())
    key = Key(id="ops", concurrent=2)
    assert limits.admit(key) is None
    assert limits.admit(key) is None
    assert limits.admit(key) == 1.0
    limits.finish(key, 5)
    assert limits.admit(key) is None


def test_a_refused_request_takes_nothing() -> None:
    clock = Clock()
    limits = Limits(clock)
    key = Key(id="ops", concurrent=1, requests_per_minute=2)
    assert limits.admit(key) is None
    for _ in range(50):
        assert limits.admit(key) == 1.0
    limits.finish(key, 0)
    assert limits.admit(key) is None  # the second request of the minute


def test_keys_do_not_share() -> None:
    limits = Limits(Clock())
    first, second = Key(id="a", requests_per_minute=1), Key(id="b", requests_per_minute=1)
    assert limits.admit(first) is None
    assert limits.admit(second) is None
    assert limits.admit(first) is not None


def test_a_limit_may_change_while_requests_run() -> None:
    clock = Clock()
    limits = Limits(clock)
    free = Key(id="ops")
    assert limits.admit(free) is None
    bound = Key(id="ops", concurrent=1, requests_per_minute=1, tokens_per_minute=10)
    assert limits.admit(bound) == 1.0  # the one that runs counts
    limits.finish(free, 5)
    assert limits.admit(bound) is None
    limits.finish(bound, 5)
    assert limits.admit(Key(id="ops", requests_per_minute=120)) is not None  # no gift
    clock.pass_(0.51)
    assert limits.admit(Key(id="ops", requests_per_minute=120)) is None
    assert limits.admit(free) is None


def test_keys_that_are_gone_are_forgotten_once_nothing_runs() -> None:
    limits = Limits(Clock())
    key = Key(id="ops", concurrent=1)
    assert limits.admit(key) is None
    limits.keep(frozenset())
    assert limits.admit(key) == 1.0
    limits.finish(key, 0)
    limits.keep(frozenset())
    assert limits._uses == {}
    limits.finish(key, 10)  # late, of a key that is gone
