"""Who is fit: over simulated time, from the first table to falls, fallbacks and recoveries."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from gateway_samples import Clock, Heard, outcome, route, table, upstream
from hypothesis import given
from hypothesis import strategies as st

from deployer.gateway.judging import Judges, Probe
from deployer.gateway.routing import Table
from deployer.gateway.standing import FAILURES, LONGEST_PAUSE, PAUSE, Probed
from deployer.gateway.window import MOST

QUALITY = {
    "every": 60.0,
    "questions": ({"ask": "2 + 2?", "expect": "4"}, {"ask": "Capital?", "expect": "Paris"}),
    "at_least": 0.5,
}  # fmt: skip
OBJECTIVES = {"ttft_p95_ms": 500.0, "max_error_rate": 0.1, "window": 60.0, "min_requests": 10}
GOOD = Probed(ttft=0.05)


class World:
    """A table, a clock, and judges that may be asked."""

    def __init__(self, to: tuple[str, ...] = ("a",), **changes: Any) -> None:
        self.clock, self.heard = Clock(), Heard()
        self.judges = Judges(self.clock, self.heard)
        self.route = route(dict.fromkeys(to, 1.0), **changes)
        self.names = (*to, *((changes["fallback"],) if "fallback" in changes else ()))
        self.apply()

    def apply(self, *extra: Any, **states: str) -> None:
        """A new table with some servers in another state; `extra` are other upstreams."""
        self.judges.apply(self.table(*extra, **states))

    def table(self, *extra: Any, **states: str) -> Table:
        taken = {one.name for one in extra}
        rows = [upstream(n, state=states.get(n, "ready")) for n in self.names if n not in taken]
        return table(self.route, upstreams=(*rows, *extra))

    def see(self, server: str, kind: str = "ok", times: int = 1, **changes: Any) -> None:
        for _ in range(times):
            self.judges.observe(outcome(server, kind, **changes))

    def fit(self, server: str = "a") -> bool:
        return self.judges.fit("chat", server)

    def reasons(self, server: str = "a") -> tuple[str, ...]:
        return next(s.reasons for s in self.judges.standings() if s.server == server)

    def live(self, seconds: float, found: Probed | None = GOOD, only: str = "") -> list[Probe]:
        """Let time pass in halves of a second, answering every probe; gives those made."""
        made = []
        for _ in range(int(seconds * 2)):
            self.clock.pass_(0.5)
            self.judges.review()
            for probe in self.judges.due():
                made.append(probe)
                self.judges.probed(probe, GOOD if only and probe.server != only else found)
        return made


def test_a_server_is_fit_while_the_table_calls_it_ready() -> None:
    world = World()
    assert world.fit() and not world.judges.fit("chat", "b") and not world.judges.fit("x", "a")
    for state in ("starting", "restarting", "draining", "failed", "lost", "stopped"):
        world.apply(a=state)
        assert not world.fit() and not world.judges.usable("chat", "a")
        assert world.reasons() == ("not_ready",)
    world.apply(a="ready")
    assert world.fit()
    assert world.heard.names == [
        "server_up", "server_fit", "server_down", "server_unfit", "server_up", "server_fit",
    ]  # fmt: skip
    assert world.heard.last("server_down") == {"server": "a", "state": "starting"}


def test_a_server_that_leaves_the_table_is_told_and_forgotten() -> None:
    world = World(("a", "b"))
    world.names = ("a",)
    world.apply()
    assert world.heard.last("server_down") == {"server": "b", "state": "gone"}
    assert not world.fit("b") and world.fit("a")


@pytest.mark.parametrize("kind", ["truncated", "timeout"])
def test_three_broken_answers_in_a_row_break_the_circuit(kind: str) -> None:
    world = World()
    world.see("a", kind, FAILURES - 1)
    world.see("a")
    world.see("a", kind, FAILURES - 1)
    assert world.fit()
    world.see("a", kind)
    assert not world.fit() and world.reasons() == ("connection",)
    assert "3 requests in a row" in str(world.heard.last("server_unfit")["detail"])
    world.live(1.0)
    assert world.fit()  # one good probe


@pytest.mark.parametrize("kind", ["client_error", "cancelled", "busy"])
def test_what_clients_do_and_full_queues_never_count(kind: str) -> None:
    world = World(objectives=OBJECTIVES)
    world.see("a", kind, 100)
    world.live(2)
    assert world.fit()
    world.see("a", "truncated", FAILURES - 1)
    world.see("a", kind, 5)  # says nothing for the server either
    world.see("a", "truncated")
    assert not world.fit()


def test_copies_and_probes_of_others_do_not_count() -> None:
    world = World()
    world.see("a", "truncated", 10, shadow=True)
    world.see("a", "truncated", 10, probe=True)
    world.see("nobody", "truncated", 10)
    assert world.fit()


def test_errors_that_requests_may_have_caused_only_bring_a_probe() -> None:
    world = World()
    assert world.live(5) == []
    world.see("a", "upstream_error", FAILURES)
    assert world.fit()
    assert len(world.live(0.5)) == 1 and world.fit()
    world.see("a", "upstream_error", FAILURES)
    assert world.live(4) == []  # one client's bad requests do not make a probe each
    assert len(world.live(1.5)) == 1 and world.fit()


def test_errors_and_a_probe_without_an_answer_break_the_circuit() -> None:
    world = World()
    world.see("a", "upstream_error", FAILURES)
    world.live(0.5, Probed())
    assert not world.fit() and not world.judges.usable("chat", "a")


def test_the_pauses_between_probes_grow_up_to_a_cap() -> None:
    world = World()
    world.see("a", "truncated", FAILURES)
    times = []
    for _ in range(400):
        world.clock.pass_(0.5)
        for probe in world.judges.due():
            times.append(world.clock.now)
            world.judges.probed(probe, Probed())
    pauses = [later - sooner for sooner, later in pairwise(times)]
    assert pauses[:6] == [PAUSE, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE]
    assert set(pauses[6:]) == {LONGEST_PAUSE}


def test_a_probe_is_not_made_twice_at_a_time() -> None:
    world = World(quality=QUALITY)
    (probe,) = world.judges.due()
    world.clock.pass_(1000)
    assert world.judges.due() == []
    world.judges.probed(probe, GOOD)
    assert world.judges.due() == []


def test_a_server_without_a_slot_for_the_probe_is_not_worse_for_it() -> None:
    world = World(quality=QUALITY)
    made = world.live(30, None)
    assert len(made) == 30 / PAUSE and world.fit()


def test_a_restart_closes_the_circuit_without_a_probe() -> None:
    world = World()
    world.see("a", "truncated", FAILURES)
    world.apply(upstream("a", restarts=1))
    assert world.fit()
    world.see("a", "truncated", FAILURES)
    world.apply(a="restarting")
    world.apply(a="ready")
    assert world.fit()


def test_a_missed_objective_needs_enough_requests() -> None:
    world = World(objectives=OBJECTIVES)
    world.see("a", ttft=0.9, times=9)
    world.judges.review()
    assert world.fit()
    world.see("a", ttft=0.9)
    world.judges.review()
    assert world.reasons() == ("objectives",)
    assert world.judges.usable("chat", "a")
    detail = str(world.heard.last("server_unfit")["detail"])
    assert detail == "TTFT p95 is 900 ms, limit 500 ms"


def test_answers_without_a_stream_have_no_time_to_first_token() -> None:
    world = World(objectives=OBJECTIVES)
    world.see("a", times=50)
    world.see("a", ttft=0.9, times=9)
    world.judges.review()
    assert world.fit()


def test_old_requests_are_forgotten() -> None:
    world = World(objectives=OBJECTIVES)
    world.see("a", ttft=0.9, times=9)
    world.clock.pass_(61)
    world.see("a", ttft=0.9, times=9)
    world.judges.review()
    assert world.fit()


def test_the_error_rate_and_the_time_per_token() -> None:
    world = World(objectives={**OBJECTIVES, "tpot_p95_ms": 50.0})
    for number in range(20):
        world.see("a", "upstream_error" if number % 5 == 0 else "ok")
    world.judges.review()
    assert "20.0% of requests failed, limit 10.0%" in str(world.heard.events)
    world = World(objectives={"tpot_p95_ms": 50.0, "min_requests": 5})
    world.see("a", tpot=0.06, times=5)
    world.judges.review()
    assert "TPOT p95 is 60 ms, limit 50 ms" in str(world.heard.events)


def test_the_memory_of_a_busy_route_is_bounded() -> None:
    world = World(objectives=OBJECTIVES)
    world.see("a", ttft=0.9, times=100)
    world.see("a", ttft=0.1, times=MOST)
    world.judges.review()
    assert world.fit()


def test_more_requests_than_that_are_kept_where_they_are_needed() -> None:
    world = World(objectives={**OBJECTIVES, "min_requests": MOST + 10})
    world.see("a", ttft=0.9, times=MOST + 9)
    world.judges.review()
    assert world.fit()
    world.see("a", ttft=0.9)
    world.judges.review()
    assert not world.fit()


def test_objectives_are_met_again_after_probes_for_long_enough() -> None:
    world = World(objectives=OBJECTIVES, recover_after=30.0)
    world.see("a", ttft=0.9, times=10)
    world.live(20)
    assert not world.fit()
    world.live(8, Probed(ttft=0.6))  # too slow: the time begins anew
    world.live(31)
    assert not world.fit()
    world.live(15)
    assert world.fit()
    world.judges.review()
    assert world.fit()  # what was seen before is forgotten


def test_who_relapses_must_pass_for_longer() -> None:
    world = World(objectives=OBJECTIVES, recover_after=10.0)
    needed = []
    for _ in range(6):
        world.see("a", ttft=0.9, times=10)
        world.judges.review()
        begun = world.clock.now
        while not world.fit():
            world.live(0.5)
        needed.append(world.clock.now - begun)
        world.live(5)
    assert needed == sorted(needed)
    assert needed[0] < 15 and 19 < needed[1] < 25 and needed[-1] == needed[-2] < 90
    world.live(200)  # well for long
    world.see("a", ttft=0.9, times=10)
    world.live(16)
    assert world.fit()


def test_questions_are_asked_again_and_again_and_wrong_answers_count() -> None:
    world = World(quality=QUALITY, recover_after=30.0)
    assert len(world.live(121, Probed(0.1, asked=2, right=2))) == 3
    assert [s.correct for s in world.judges.standings()] == [1.0]
    world.live(60, Probed(0.1, asked=2, right=1))
    assert world.fit()  # half of them is enough here
    world.live(60, Probed(0.1, asked=2, right=0))
    assert world.reasons() == ("quality",) and world.judges.usable("chat", "a")
    assert world.heard.last("server_unfit")["detail"] == "0 of 2 questions answered rightly"
    world.live(60, Probed(0.1, asked=2, right=0))
    assert not world.fit()
    world.live(LONGEST_PAUSE + 45, Probed(0.1, asked=2, right=2))
    assert world.fit()


def test_a_round_without_answers_is_no_wrong_answer() -> None:
    world = World(quality=QUALITY)
    world.live(1, Probed())
    assert world.fit()
    world.live(4, Probed())
    assert world.reasons() == ("connection",)


def test_another_bundle_begins_anew_and_a_restart_of_the_same_does_not() -> None:
    world = World(quality=QUALITY)
    world.live(1, Probed(0.1, asked=2, right=0))
    world.apply(upstream("a", restarts=1))
    assert world.reasons() == ("quality",)
    (stale,) = world.judges.due()
    world.apply(upstream("a", instance="a.2"))
    assert world.fit()
    world.judges.probed(stale, Probed(0.1, asked=2, right=0))  # of the old one
    assert world.fit()
    assert [probe.instance for probe in world.judges.due()] == ["a.2"]


def test_other_demands_begin_anew_and_other_weights_do_not() -> None:
    world = World(objectives=OBJECTIVES)
    world.see("a", ttft=0.9, times=10)
    world.judges.review()
    world.route = route({"a": 5.0}, objectives=OBJECTIVES)
    world.apply()
    assert not world.fit()
    world.route = route({"a": 5.0}, objectives={**OBJECTIVES, "ttft_p95_ms": 1000.0})
    world.apply()
    assert world.fit()


def test_the_fallback_takes_over_and_gives_back() -> None:
    world = World(("a", "b"), fallback="f", objectives=OBJECTIVES, recover_after=10.0)
    assert world.judges.fallbacks() == {"chat": False}
    world.apply(b="restarting")
    assert world.judges.fallbacks() == {"chat": False}
    world.see("a", ttft=0.9, times=10)
    world.judges.review()
    assert world.judges.fallbacks() == {"chat": True}
    assert world.heard.last("fallback_on") == {
        "route": "chat", "fallback": "f", "reason": "objectives",
        "details": {"a": "TTFT p95 is 900 ms, limit 500 ms", "b": "it is restarting"},
    }  # fmt: skip
    world.apply(b="ready")
    assert world.judges.fallbacks() == {"chat": False}
    assert world.heard.names.count("fallback_off") == 1
    assert world.heard.names.count("fallback_on") == 1


def test_a_fallback_that_is_ill_itself_is_not_active() -> None:
    world = World(("a",), fallback="f")
    world.apply(a="restarting", f="restarting")
    assert world.judges.fallbacks() == {"chat": False}
    world.apply(a="restarting")
    assert world.judges.fallbacks() == {"chat": True}


def test_the_fallback_is_not_judged_by_the_objectives() -> None:
    world = World(("a",), fallback="f", objectives=OBJECTIVES, quality=QUALITY)
    world.see("f", ttft=9.0, times=50)
    world.live(2, Probed(9.0, asked=2, right=2))
    assert world.fit("f")
    world.live(61, Probed(9.0, asked=2, right=0), only="f")
    assert world.reasons("f") == ("quality",) and world.fit("a")


def test_one_server_of_two_routes_is_judged_for_each() -> None:
    clock, heard = Clock(), Heard()
    judges = Judges(clock, heard)
    strict, lax = route({"a": 1.0}, objectives=OBJECTIVES), route({"a": 1.0}, model="other")
    judges.apply(table(strict, lax, upstreams=(upstream("a"),)))
    for _ in range(10):
        judges.observe(outcome("a", ttft=0.9))
    judges.review()
    assert not judges.fit("chat", "a") and judges.fit("other", "a")
    for _ in range(FAILURES):
        judges.observe(outcome("a", "timeout", route="other"))
    assert not judges.fit("other", "a")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("see"), st.sampled_from(["ok", "timeout", "upstream_error", "busy"])),
        st.tuples(st.just("pass"), st.floats(0.1, 40.0)),
        st.tuples(st.just("probe"), st.sampled_from([0, 1, 2, None])),
        st.tuples(st.just("state"), st.sampled_from(["ready", "restarting"])),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_events_agree_and_a_good_server_comes_back(
    steps: list[tuple[str, Any]],
) -> None:
    world = World(("a",), fallback="f", objectives=OBJECTIVES, quality=QUALITY, recover_after=5.0)
    for what, value in steps:
        if what == "see":
            world.see("a", value, times=4, ttft=0.9)
        elif what == "pass":
            world.clock.pass_(value)
            world.judges.review()
        elif what == "state":
            world.apply(a=value)
        else:
            found = None if value is None else Probed(0.1, asked=2, right=value)
            for probe in world.judges.due():
                world.judges.probed(probe, found)
        told = [n for n, f in world.heard.events if f.get("server") == "a" and "fit" in n]
        assert (told[-1] == "server_fit") == world.fit("a")
        assert all(one != other for one, other in pairwise(told))
        shifts = [n for n in world.heard.names if n.startswith("fallback")]
        active = world.judges.fallbacks()["chat"]
        assert active == (bool(shifts) and shifts[-1] == "fallback_on")
        assert active == (world.fit("f") and not world.fit("a"))
    world.apply(a="ready")
    world.live(LONGEST_PAUSE + 5 * 2**3 + 30, Probed(0.1, asked=2, right=2))
    assert world.fit("a") and world.fit("f")
