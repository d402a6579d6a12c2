"""Recommending: limits, scaling, estimates, ties, doubts, and their words; figures made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_comparison import made_up_comparison as make

from deployer.comparison import Comparison
from deployer.errors import UsageError
from deployer.home import Home
from deployer.recipe.environment import Environment, find_environment
from deployer.recommending import Recommendation, basis_lines, describe, recommend, ruled_out_rows
from deployer.recommending.estimated import Estimator, reached
from deployer.recommending.reading import cache_bytes_per_token
from deployer.workflow import recommending as workflow

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]
MADE_UP = make()
HERE: Json = {
    "version": 1, "name": "here", "description": "the machine of the made-up comparison",
    "device": "cpu", "cores": 2, "memory_gib": 24, "price_per_hour": 0.36,
    "load": {"users": 8, "prompt_tokens": 64, "output_tokens": 64},
}  # fmt: skip
GPU: Json = {
    "name": "NVIDIA Example", "memory_gib": 24.0, "bandwidth_gb_s": 300.0, "tflops": 121.0,
    "compute_capability": "8.9",
}  # fmt: skip


def environment(**changes: Any) -> Environment:
    return Environment.model_validate_json(json.dumps({**HERE, **changes}))


def on_a_gpu(**changes: Any) -> Environment:
    return environment(device="cuda", gpu={**GPU, **changes.pop("gpu", {})}, **changes)


def changed(**rows: Json) -> Comparison:
    """The made-up comparison with rows changed: NAME={"dotted.field": value}."""
    document = MADE_UP.model_dump(mode="json")
    for name, changes in rows.items():
        row = next(row for row in document["rows"] if row["name"] == name)
        for field, value in changes.items():
            *path, last = field.split(".")
            at = row
            for key in path:
                at = at[key]
            at[last] = value
    return Comparison.model_validate(document)


def only(*names: str, comparison: Comparison | None = None) -> Comparison:
    whole = comparison or MADE_UP
    return whole.model_copy(update={"rows": tuple(r for r in whole.rows if r.name in names)})


def reason(found: Recommendation, name: str) -> tuple[str, str]:
    return next((each.kind, each.reason) for each in found.ruled_out if each.name == name)


@pytest.mark.parametrize(
    ("name", "chosen", "runner_up"),
    [
        ("edge-cpu", "mixed", "q4_k_m"),
        ("cloud-cpu", "mixed", "q4_k_m"),
        ("gpu-24g", "f16", "bf16"),
        ("gpu-80g", "f16", "bf16"),
    ],
)
def test_the_made_up_figures_lead_to_these_answers(
    name: str, chosen: str, runner_up: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    found = recommend(MADE_UP, find_environment(name))
    assert found.chosen
    assert found.runner_up
    assert (found.chosen.name, found.runner_up.name) == (chosen, runner_up)


def test_on_the_same_machine_with_the_same_load_figures_stand_as_measured() -> None:
    comparison = MADE_UP
    found = recommend(comparison, environment(quality={"max_perplexity_ratio": 1.02}))
    assert found.chosen
    assert found.chosen.name == "q8_0"
    row = comparison.row("q8_0").serving
    assert row
    look = found.chosen.outlook
    assert look.output.value == row.loaded.output
    assert row.loaded.ttft
    assert look.ttft_p95_ms.value == row.loaded.ttft.p95
    assert {f.basis for f in (look.output, look.ttft_p95_ms, look.e2e_p95_ms, look.memory)} == {
        "measured"
    }
    assert [doubt.reason for doubt in found.doubts] == ["q6_k is as fast within noise"]
    assert found.confidence == "medium"
    assert all("ESTIMATE" not in line for line in [*describe(found), *basis_lines(found)])


@pytest.mark.parametrize(
    ("changes", "output", "ttft", "tpot"),
    [
        ({"cores": 4}, 2.0, 0.5, 0.5),
        ({"cores": 1}, 0.5, 2.0, 2.0),
        ({"load": {**HERE["load"], "users": 4}}, 0.5, 1.0, 1.0),
        ({"load": {**HERE["load"], "users": 24}}, 1.0, 3.0, 3.0),
    ],
)
def test_other_cores_and_users_scale_the_figures(
    changes: Json, output: float, ttft: float, tpot: float
) -> None:
    comparison = only("q8_0")
    before = recommend(comparison, environment()).chosen
    after = recommend(comparison, environment(**changes)).chosen
    assert before
    assert after
    ours, theirs = after.outlook, before.outlook
    assert ours.output.mean == pytest.approx(output * theirs.output.mean)
    assert ours.ttft_p95_ms.mean == pytest.approx(ttft * theirs.ttft_p95_ms.mean)
    assert ours.tpot_p95_ms.mean == pytest.approx(tpot * theirs.tpot_p95_ms.mean)
    assert ours.output.basis == "scaled"
    assert after.cost == pytest.approx(before.cost / output)


def test_what_is_scaled_is_labelled_and_lowers_the_confidence() -> None:
    found = recommend(only("q8_0"), environment(cores=4))
    assert found.confidence == "medium"
    assert "ESTIMATE for 4" in found.doubts[0].reason
    text = "\n".join(describe(found))
    assert "284 output tokens/s" in text
    assert text.count("ESTIMATE") >= 3
    assert any(line.startswith("ESTIMATE: output tokens/s: 142 measured x 2 (2 cores here / 4 "
                               "there) = 284") for line in basis_lines(found))  # fmt: skip


def test_one_user_is_answered_from_the_level_with_one_user() -> None:
    found = recommend(only("q8_0"), environment(load={**HERE["load"], "users": 1}))
    serving = MADE_UP.row("q8_0").serving
    assert found.chosen
    assert serving
    assert found.chosen.outlook.output.value == serving.single.output


def test_longer_prompts_and_answers_change_the_time_of_a_request() -> None:
    load = {"users": 8, "prompt_tokens": 128, "output_tokens": 128}
    found = recommend(only("q8_0"), environment(load=load)).chosen
    level = MADE_UP.row("q8_0").serving
    assert found
    assert level
    assert level.loaded.ttft
    assert level.loaded.tpot
    assert level.loaded.output
    ttft, tpot = level.loaded.ttft.p50.mean, level.loaded.tpot.p50.mean
    rate = 2 * (ttft + 63 * tpot) / (2 * ttft + 127 * tpot)
    assert found.outlook.output.mean == pytest.approx(level.loaded.output.mean * rate)
    assert found.outlook.ttft_p95_ms.mean == pytest.approx(2 * level.loaded.ttft.p95.mean)


def test_no_token_comes_faster_than_the_memory_can_be_read() -> None:
    load = {**HERE["load"], "users": 1}
    slow, fast = (
        recommend(only("f16"), environment(load=load, bandwidth_gb_s=rate)).chosen
        for rate in (2.0, 2000.0)
    )
    free = recommend(only("f16"), environment(load=load)).chosen
    assert slow
    assert fast
    assert free
    cache = cache_bytes_per_token(only("f16"))
    least = (free.weights_bytes + 128 * cache) / 2e9 * 1000
    assert slow.outlook.tpot_p95_ms.mean > least > free.outlook.tpot_p95_ms.mean
    assert fast.outlook == free.outlook


def test_quality_is_held_to_the_end_of_its_interval() -> None:
    comparison = changed(q4_k_m={"quality.perplexity_ratio": {
        "value": 1.04, "low": 1.02, "high": 1.061}})  # fmt: skip
    found = recommend(comparison, environment(quality={"max_perplexity_ratio": 1.05}))
    assert reason(found, "q4_k_m") == ("quality", "perplexity ratio may be 1.061, and the limit is "
                                       "1.05")  # fmt: skip


@pytest.mark.parametrize(
    ("quality", "kind"),
    [
        ({"max_kl_divergence": 0.05}, "KL divergence may be 0.2103"),
        ({"min_top1_agreement": 0.9}, "top-1 agreement is 0.759"),
        ({"min_task_recovery": 0.99}, "task recovery is"),
    ],
)
def test_every_limit_of_quality_counts(quality: Json, kind: str) -> None:
    found = recommend(MADE_UP, environment(quality=quality))
    assert reason(found, "q4_0")[0] == "quality"
    assert reason(found, "q4_0")[1].startswith(kind)
    assert "f16" not in {each.name for each in found.ruled_out if each.kind == "quality"}


def test_what_is_not_known_of_the_quality_does_not_pass() -> None:
    found = recommend(MADE_UP, environment(quality={"min_task_recovery": 0.5}))
    assert reason(found, "w8a8") == ("quality", "its task recovery is not known")
    nothing = recommend(only("w8a8"), environment(quality={"min_task_recovery": 0.5}))
    assert describe(nothing)[-1] == "  w8a8: its task recovery is not known."
    assert Recommendation.model_validate_json(json.dumps(nothing.as_json())) == nothing


def test_a_format_that_failed_requests_is_not_chosen() -> None:
    found = recommend(changed(q4_0={"serving.loaded.failed": 3}), environment())
    assert reason(found, "q4_0")[0] == "slo"
    assert reason(found, "q4_0")[1].startswith("3 of ")


def test_a_figure_that_was_not_measured_rules_a_format_out() -> None:
    found = recommend(changed(q4_0={"serving.loaded.ttft": None}), environment())
    assert reason(found, "q4_0")[0] == "not-measured"


def test_a_tie_in_throughput_is_decided_by_quality_and_told() -> None:
    found = recommend(only("q4_k_m", "mixed"), environment())
    assert found.chosen
    assert found.chosen.name == "mixed"
    assert found.decided == ("A tie in throughput; decided by quality: perplexity ratio 1.033 of "
                             "mixed against 1.036.")  # fmt: skip
    assert [doubt.reason for doubt in found.doubts] == ["q4_k_m is as fast within noise"]
    better = only("q4_k_m", "mixed", comparison=changed(q4_k_m={"quality.perplexity_ratio": {
        "value": 1.033, "low": 1.0, "high": 1.05}}))  # fmt: skip
    assert recommend(better, environment()).decided.startswith(
        "A tie in throughput; the perplexity ratio is the same; decided by size: 89.62 MB of mixed"
    )


def test_a_limit_on_requests_per_second_is_a_limit_of_throughput() -> None:
    load = {"requests_per_s": 2.5, "prompt_tokens": 64, "output_tokens": 64}
    found = recommend(MADE_UP, environment(load=load))
    assert reason(found, "q6_k") == ("throughput", "gives 149 output tokens/s, and 160 are asked "
                                     "for")  # fmt: skip
    assert [spare.of for spare in found.headroom] == ["memory", "throughput"]
    assert found.headroom[1].what == "160 of 186 output tokens/s"


def test_when_nothing_passes_it_says_what_would_have_to_give_nearest_first() -> None:
    found = recommend(MADE_UP, environment(slo={"tpot_p95_ms": 50}))
    assert (found.chosen, found.runner_up, found.confidence) == (None, None, None)
    lines = describe(found)
    assert lines[0].startswith("No format of 20261122-100000-made-up suits here")
    assert lines[1] == "What would have to give, nearest first:"
    order = [line.split(":")[0].strip() for line in lines[2:]]
    assert order[:3] == ["q4_0", "mixed", "q4_k_m"]
    assert len(order) == 10
    assert "TPOT p95 is 62.6 ms, and the limit is 50" in lines[2]


def test_what_cannot_run_there_is_told_by_the_tables_of_plan() -> None:
    old = on_a_gpu(gpu={"name": "NVIDIA Old", "compute_capability": "7.0"})
    found = recommend(MADE_UP, old)
    for name in ("bf16", "awq", "w8a8"):
        kind, why = reason(found, name)
        assert kind == "not-runnable"
        assert "NVIDIA Old has 7.0" in why
    assert found.chosen
    assert found.chosen.engine == "llama.cpp"


def test_what_was_not_measured_has_no_figure_anywhere() -> None:
    for place in (environment(), on_a_gpu()):
        found = recommend(MADE_UP, place)
        kinds = {name: reason(found, name)[0] for name in ("hqq-int2", "torchao-int4")}
        assert kinds == {"hqq-int2": "quality", "torchao-int4": "not-measured"}
        assert reason(found, "quanto-float8")[0] == "not-runnable"
        assert not [
            each for each in found.ruled_out if each.name == "quanto-float8" and each.misses
        ]


def test_of_a_gpu_everything_but_quality_is_an_estimate_and_says_so() -> None:
    found = recommend(MADE_UP, on_a_gpu())
    assert found.chosen
    look = found.chosen.outlook
    every = (look.memory, look.ttft_p95_ms, look.tpot_p95_ms, look.e2e_p95_ms, look.output)
    assert {figure.basis for figure in every} == {"estimated"}
    assert found.confidence == "low"
    assert "nothing was measured on NVIDIA Example" in found.doubts[0].reason
    assert all("ESTIMATE" in line for line in describe(found) if "tokens/s, TTFT" in line)
    told = [line for line in basis_lines(found) if " = " in line]
    assert len(told) == 5
    assert all(line.startswith("ESTIMATE: ") for line in told)


def test_the_formula_of_a_gpu_by_hand() -> None:
    load = {"users": 4, "prompt_tokens": 100, "output_tokens": 101}
    comparison = only("f16").model_copy(update={"source": {"kv_bytes_per_token": 20_000}})
    found = recommend(comparison, on_a_gpu(load=load)).chosen
    assert found
    weights, cache = found.weights_bytes, 4 * 201 * 20_000
    step = 0.0013 + (weights + cache) / (0.84 * 300e9)
    ttft = step + 4 * 2 * 134_515_008 * 100 / (0.25 * 121e12)
    e2e = ttft + 100 * step
    look = found.outlook
    assert look.tpot_p95_ms.mean == pytest.approx(1000 * step)
    assert look.ttft_p95_ms.mean == pytest.approx(1000 * ttft)
    assert look.e2e_p95_ms.mean == pytest.approx(1000 * e2e)
    assert look.output.mean == pytest.approx(4 * 101 / e2e)
    assert look.memory.mean == pytest.approx(weights + cache + 1.5 * 1024**3)
    assert found.cost == pytest.approx(0.36 / (4 * 101 / e2e * 3600) * 1e6)


def test_an_engine_that_computes_one_request_at_a_time_does_not_gain_by_users() -> None:
    one, eight = (
        recommend(only("nf4"), on_a_gpu(load={**HERE["load"], "users": users})).chosen
        for users in (1, 8)
    )
    assert one
    assert eight
    assert eight.outlook.output.mean == pytest.approx(one.outlook.output.mean)
    assert eight.outlook.e2e_p95_ms.mean == pytest.approx(8 * one.outlook.e2e_p95_ms.mean)
    waits = 7 * one.outlook.e2e_p95_ms.mean + one.outlook.ttft_p95_ms.mean
    assert eight.outlook.ttft_p95_ms.mean == pytest.approx(waits)
    assert eight.outlook.memory == one.outlook.memory


def test_weights_count_as_they_lie_in_memory() -> None:
    stored = changed(nf4={"size.weights_bytes": 269_030_016})  # at 16 bits, quantized as it loads
    before, after = (
        recommend(only("nf4"), on_a_gpu()),
        recommend(only("nf4", comparison=stored), on_a_gpu()),
    )
    assert before.chosen
    assert after.chosen
    assert before.chosen.outlook.output.mean == pytest.approx(after.chosen.outlook.output.mean)


def test_what_an_engine_cannot_load_on_a_gpu_is_not_runnable_there() -> None:
    comparison = changed(nf4={"method": "quanto", "scheme": "float8"})
    kind, why = reason(recommend(comparison, on_a_gpu()), "nf4")
    assert (kind, why.split(":")[0]) == ("not-runnable", "quanto float8 does not run on a GPU")


def test_fewer_bits_reach_a_smaller_share_of_the_bandwidth() -> None:
    shares = [reached(bits)[0] for bits in (32, 16, 8.5, 5.3, 4.5)]
    assert shares == [0.84, 0.84, 0.64, 0.43, 0.43]


@given(st.floats(100, 4000), st.floats(1.0, 4.0), st.integers(1, 200))
def test_more_bandwidth_is_never_slower(bandwidth: float, times: float, users: int) -> None:
    size = MADE_UP.row("q4_0").size
    assert size
    steps = []
    for rate in (bandwidth, bandwidth * times):
        place = on_a_gpu(gpu={"bandwidth_gb_s": rate})
        assert place.gpu
        steps.append(Estimator(size, 20_000, place, place.gpu).step(users))
    assert steps[1].output >= steps[0].output
    assert steps[1].tpot <= steps[0].tpot


def test_a_model_that_does_not_fit_the_gpu_is_ruled_out_by_memory() -> None:
    found = recommend(MADE_UP, on_a_gpu(gpu={"memory_gib": 1.9}))
    assert found.chosen is None or found.chosen.name not in ("f16", "bf16")
    assert reason(found, "f16")[0] == "memory"


def test_the_cache_of_a_token_is_told_or_bounded_by_the_peak() -> None:
    comparison = MADE_UP
    told = comparison.model_copy(update={"source": {"kv_bytes_per_token": 23_040}})
    assert cache_bytes_per_token(told) == 23_040
    rows = [row for row in comparison.measured if row.serving and row.size]
    bounds = [
        (r.serving.peak_rss_bytes.mean - r.size.weights_bytes) / (2048 * 8)  # type: ignore[union-attr]
        for r in rows
    ]
    assert cache_bytes_per_token(comparison) == pytest.approx(min(bounds))


def made_on_a_gpu() -> Comparison:
    held = {"values": [1e9], "mean": 1e9}
    document = changed(**{
        name: {"serving.peak_gpu_bytes": held} for name in ("f16", "bf16", "q8_0")
    }).model_dump(mode="json")  # fmt: skip
    document["host"]["gpus"] = ["NVIDIA Example 24GB"]
    return Comparison.model_validate(document)


def test_a_comparison_made_on_that_gpu_is_measured_there() -> None:
    found = recommend(made_on_a_gpu(), on_a_gpu())
    assert found.chosen
    assert found.chosen.outlook.output.basis == "measured"
    assert "nothing was measured" not in "".join(doubt.reason for doubt in found.doubts)


def test_of_a_comparison_made_on_a_gpu_nothing_follows_for_a_cpu() -> None:
    with pytest.raises(UsageError, match="made on a GPU, which tells nothing of the CPU of here"):
        recommend(made_on_a_gpu(), environment())


def test_a_contended_trial_of_the_chosen_format_makes_the_answer_unsure() -> None:
    found = recommend(only("w8a8"), environment())
    assert found.confidence == "low"
    assert "busy with something else in a trial of w8a8" in found.doubts[0].reason
    assert recommend(only("q8_0"), environment()).confidence == "high"


def test_problems_of_the_load_test_make_the_answer_unsure() -> None:
    found = recommend(only("awq"), environment())
    assert found.confidence == "low"
    assert found.doubts[0].reason == "awq: the client was busy 85 % of the time"


def test_one_trial_and_a_near_limit_are_doubts() -> None:
    once = {"values": [142.0], "mean": 142.0}
    comparison = only("q8_0", comparison=changed(q8_0={"serving.loaded.output": once}))
    tpot = comparison.row("q8_0").serving.loaded.tpot.p95  # type: ignore[union-attr]
    limit = tpot.mean * 1.001
    assert tpot.high > limit
    found = recommend(comparison, environment(slo={"tpot_p95_ms": limit}))
    assert [doubt.reason for doubt in found.doubts] == [
        "q8_0 was measured once, which tells nothing of noise",
        "the interval of TPOT p95 reaches beyond its limit",
    ]
    assert found.confidence == "medium"
    near = recommend(only("q8_0"), environment(slo={"tpot_p95_ms": tpot.high * 1.01}))
    assert [doubt.reason for doubt in near.doubts] == ["TPOT p95 is within 5% of its limit"]


def test_every_format_is_chosen_runner_up_or_ruled_out_once() -> None:
    for place in (environment(), on_a_gpu(), environment(memory_gib=0.1)):
        found = recommend(MADE_UP, place)
        named = [each.name for each in (found.chosen, found.runner_up) if each]
        named += [name for name, _, _ in ruled_out_rows(found)]
        assert sorted(named) == sorted(row.name for row in MADE_UP.rows)


def store(home: Home, name: str) -> Path:
    folder = home.comparisons / name
    folder.mkdir(parents=True)
    path = folder / "comparison.json"
    path.write_text(MADE_UP.model_copy(update={"id": name}).model_dump_json())
    return path


def test_a_comparison_is_found_by_id_folder_file_or_as_the_newest(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(UsageError, match="there is no comparison yet"):
        workflow.find_comparison(None, home)
    path = store(home, "first")
    for what in (None, "first", str(path), str(path.parent)):
        assert workflow.find_comparison(what, home).id == "first"
    store(home, "second")
    assert workflow.find_comparison(None, home).id == "second"
    with pytest.raises(UsageError, match="there is no comparison third: neither here nor in"):
        workflow.find_comparison("third", home)
    path.write_text("{}")
    with pytest.raises(UsageError, match="holds no comparison that can be read"):
        workflow.find_comparison("first", home)
