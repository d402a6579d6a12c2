"""The figures of open loops, trials, conversations and gates, from made-up requests."""

from __future__ import annotations

import random

import pytest
from loadtest_samples import closed_loop, sample

from deployer.loadtest import judging, measure, validity
from deployer.loadtest.levels import level_of
from deployer.loadtest.measure import Part, Window, Worker
from deployer.metrics import MEASURED, WARMUP, Limits
from deployer.recipe import LoadTest, Slo

WORKLOAD = LoadTest(profile="constant", rate=4.0, duration=20, warmup=5)
LEVEL = level_of(WORKLOAD)
WORKERS = (Worker(0.0, 25.0, 1.0, 5.0),)


def arrivals(took: float = 0.5, growth: float = 0.0, late: float = 0.001, rate: float = 4.0):
    """Requests due every 1 / rate seconds; each takes `took` and `growth` a second it is later."""
    made = []
    for number in range(int(25 * rate)):
        due = number / rate
        sent, last = due + late + 0.001, due + late + 0.001 + took + growth * due
        made.append(
            sample(
                id=f"0-0-{number}", phase=MEASURED if due >= 5 else WARMUP, due=due,
                opened=due + late, sent=sent, first=sent + 0.1, first_output=sent + 0.1,
                last=last, closed=last, chunks=(sent + 0.1, last),
            )
        )  # fmt: skip
    return made


def part(samples, planned=80):
    return Part(tuple(samples), Window(5.0, 25.0), WORKERS, planned)


def stage(samples, limits=Limits()):  # noqa: B008 (frozen)
    return measure.stage(LEVEL, [part(samples)], limits)


# --- open loops ------------------------------------------------------------------------------


def test_latency_also_counts_from_when_a_request_was_due():
    made = stage(arrivals(took=0.5, late=0.2))
    latency = made.latency_ms
    assert latency.e2e.p50 == pytest.approx(500)
    assert latency.e2e_from_schedule.p50 == pytest.approx(701)
    assert latency.queue.p50 == pytest.approx(201) and latency.connect.p50 == pytest.approx(1)
    assert (made.target, made.unit, made.offered) == (4.0, "requests/s", 4.0)
    assert made.achieved == pytest.approx(4.0, abs=0.11)


def test_a_closed_loop_has_no_schedule():
    level = level_of(LoadTest(profile="concurrent", users=8))
    made = measure.stage(level, [Part(tuple(closed_loop()), Window(3, 23))], Limits())
    assert made.latency_ms.queue is None and made.latency_ms.e2e_from_schedule is None
    assert made.offered is None and made.saturated is None


def test_requests_that_pile_up_are_saturation():
    assert stage(arrivals()).saturated is False
    assert stage(arrivals(took=1.5)).saturated is False, "slow, but it keeps up"
    assert stage(arrivals(growth=0.2)).saturated is True


def test_goodput_below_the_objectives_is_saturation():
    assert stage(arrivals(took=1.5), Limits(e2e=2.0)).saturated is False
    assert stage(arrivals(took=1.5), Limits(e2e=1.0)).saturated is True


def test_a_client_that_is_late_or_sends_too_little_makes_no_valid_measurement():
    def problems(samples, planned=80):
        one = part(samples, planned)
        return validity.client([stage(samples)], [[one]], None).problems

    assert problems(arrivals()) == ()
    assert "requests were begun 30.0 ms after they were due" in problems(arrivals(late=0.03))[0]
    assert "only 80 of 90 planned requests were sent" in problems(arrivals(), planned=90)[0]


def test_a_saturated_server_is_a_valid_finding():
    samples = arrivals(growth=2.0)
    assert validity.client([stage(samples)], [[part(samples)]], None).valid


def test_a_warm_up_shorter_than_a_request_is_told():
    def names(warmup):
        from loadtest_samples import HOST

        samples = arrivals(took=1.5)
        found = validity.flags(samples, [stage(samples)], HOST, "constant", warmup)
        return [flag.name for flag in found]

    assert names(5) == [] and names(1) == ["short_warmup"]


# --- trials ----------------------------------------------------------------------------------


def trials(*paces: float):
    return [part(arrivals(took=pace)) for pace in paces]


def test_trials_have_a_spread_with_a_confidence_interval():
    made = measure.stage(LEVEL, trials(0.4, 0.5, 0.6), Limits())
    spread = made.trials["e2e_p50_ms"]
    assert (spread.n, spread.mean, spread.sd) == (3, pytest.approx(500), pytest.approx(100))
    assert spread.cv == pytest.approx(0.2)
    assert spread.ci95 == (pytest.approx(500 - 248.4, abs=0.1), pytest.approx(748.4, abs=0.1))
    assert made.requests.sent == 240 and made.duration_s == 60.0
    assert made.offered == pytest.approx(4.0)
    assert stage(arrivals()).trials == {}, "one trial has no spread"


def test_the_interval_of_a_mean_holds_the_truth_in_about_95_of_100_runs():
    source = random.Random(3)
    inside = 0
    for _ in range(400):
        spread = measure._spread([source.gauss(10, 2) for _ in range(5)])
        inside += spread.ci95[0] <= 10 <= spread.ci95[1]
    assert 0.92 <= inside / 400 <= 0.98


# --- conversations ---------------------------------------------------------------------------


def test_turns_of_conversations_are_told_apart():
    samples = [
        sample(turn=turn, first=1.1 + turn / 10, prompt_tokens=100 * (turn + 1), cached_tokens=90)
        for turn in (0, 1, 1)
    ]
    level = level_of(LoadTest(profile="chat"))
    made = measure.stage(level, [Part(tuple(samples), Window(0, 2))], Limits())
    assert [(t.turn, t.n, t.input_tokens, t.cached_share) for t in made.turns] == [
        (0, 1, 100.0, 0.9), (1, 2, 200.0, 0.45),
    ]  # fmt: skip
    assert made.turns[1].ttft_p50_ms == pytest.approx(200)


# --- gates -----------------------------------------------------------------------------------


def gated(*gates: str, slo: Slo | None = None, stages=None):
    workload = WORKLOAD.model_copy(update={"gates": gates, "slo": slo or Slo()})
    found = judging.gates(workload, stages or [stage(arrivals(took=0.5))])
    return [(gate.expression, gate.value, gate.passed) for gate in found]


def test_gates_are_judged_in_the_order_of_the_recipe():
    found = gated("e2e_p95_ms <= 600", "goodput >= 0.95", slo=Slo(ttft_p95_ms=50.0))
    assert [(text, passed) for text, _, passed in found] == [
        ("ttft_p95_ms <= 50", False),
        ("e2e_p95_ms <= 600", True),
        ("goodput >= 0.95", True),
        ("error_rate <= 0", True),
    ]


def test_a_gate_is_judged_on_its_worst_stage():
    stages = [stage(arrivals(took=0.5)), stage(arrivals(took=0.9))]
    assert gated("e2e_p50_ms <= 600", stages=stages)[0] == (
        "e2e_p50_ms <= 600", pytest.approx(900), False,
    )  # fmt: skip
    assert gated("e2e_p50_ms >= 600", stages=stages)[0][1] == pytest.approx(500)


def test_a_gate_without_a_value_is_not_met():
    assert gated("ttft_p99_ms <= 1000")[0][1:] == (None, False), "p99 of 80 requests"
    closed = measure.stage(level_of(LoadTest()), [Part((sample(),), Window(0, 2))], Limits())
    assert gated("queue_p50_ms <= 1000", stages=[closed])[0][1:] == (None, False)


@pytest.mark.parametrize("name", ["goodput", "error_rate", "output_tokens_per_s",
                                  "requests_per_s", "cached_share"])  # fmt: skip
def test_every_figure_of_a_gate_can_be_had(name):
    assert judging.figure(stage(arrivals()), name) is not None
