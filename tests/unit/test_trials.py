"""Load tests of several trials -> one level of a comparison."""

from __future__ import annotations

import pytest
from loadtest_samples import closed_loop, result

from deployer.comparison import SPREAD
from deployer.metrics import MEASURED, percentile, ttft
from deployer.trials import level


def runs(count: int, **kwargs):  # type: ignore[no-untyped-def]
    samples = closed_loop()
    return [(result(samples, **kwargs), samples) for _ in range(count)]


def test_a_level_has_a_value_of_every_trial() -> None:
    three = runs(3)
    found = level(8, three)
    stage = three[0][0].stages[0]
    assert found.output is not None and found.ttft is not None
    assert found.output.values == (stage.throughput.output_tokens_per_s,) * 3
    assert found.output.low == found.output.high == found.output.mean
    assert found.ttft.p95.mean == stage.latency_ms.ttft.p95
    assert found.decode is not None and stage.latency_ms.tpot.p50 is not None
    assert found.decode.mean == pytest.approx(1000 / stage.latency_ms.tpot.p50)
    assert found.requests == 3 * stage.requests.ok
    assert found.runs == (three[0][0].run.id,) * 3


def test_the_spread_is_of_all_requests_of_all_trials() -> None:
    three = runs(3)
    found = level(8, three)
    values = [1000 * (ttft(s) or 0) for s in three[0][1] if s.ok and s.phase == MEASURED] * 3
    assert found.ttft is not None
    assert found.ttft.spread == tuple(round(percentile(values, p), 3) for p in SPREAD)
    assert list(found.ttft.spread) == sorted(found.ttft.spread)


def test_prefill_belongs_to_one_user_and_counts_no_cached_token() -> None:
    assert level(8, runs(1)).prefill is None
    (one,) = runs(1)
    stage = one[0].stages[0]
    found = level(1, [one]).prefill
    assert found is not None and stage.tokens.input and stage.latency_ms.ttft.p50
    computed = stage.tokens.input - (stage.tokens.cached or 0)
    per_request = computed / stage.requests.ok
    assert found.mean == pytest.approx(per_request / stage.latency_ms.ttft.p50 * 1000)


def test_without_limits_there_is_no_goodput() -> None:
    assert level(8, runs(1)).goodput is None


def test_a_figure_that_one_trial_lacks_is_none() -> None:
    good, bad = runs(2)
    stage = bad[0].stages[0]
    without = stage.model_copy(
        update={"throughput": stage.throughput.model_copy(update={"output_tokens_per_s": None})}
    )
    assert (
        level(8, [good, (bad[0].model_copy(update={"stages": (without,)}), bad[1])]).output is None
    )


def test_what_makes_a_trial_unreliable_is_told_with_its_number() -> None:
    good, bad = runs(2)
    client = bad[0].client.model_copy(update={"valid": False, "problems": ("it woke late",)})
    found = level(8, [good, (bad[0].model_copy(update={"client": client}), bad[1])])
    assert found.problems == ("trial 2: it woke late",)


def test_a_trial_of_next_to_nothing_is_told() -> None:
    ((good, samples),) = runs(1)
    stage = good.stages[0]
    few = stage.requests.model_copy(update={"ok": 2})
    poor = good.model_copy(update={"stages": (stage.model_copy(update={"requests": few}),)})
    (problem,) = level(8, [(good, samples), (poor, samples)]).problems
    assert problem == "fewer than 5 requests were answered in a trial, measure for longer"
