"""What counts as a regression, and what does not: noise, single trials, other workloads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loadtest_samples import closed_loop, result
from made_up_comparison import CONTENDED, made_up_comparison

from deployer.comparison import COMPARISON, Comparison, Estimate, Row, estimate
from deployer.errors import UsageError
from deployer.regression import (
    Change,
    changes,
    differences,
    incomparable,
    judged,
    read_stored,
    regressed,
)
from deployer.regression.figures import DIVERGENCE, LOAD, OUTPUT, Figure, Measured, of_row
from deployer.report.regression import (
    ORDER,
    difference_lines,
    regression_lines,
    regression_table,
)
from deployer.results import RESULT, LoadTestResult, Trials

OPPOSITE = {"regressed": "improved", "improved": "regressed", "same": "same", "unknown": "unknown"}
BASE = made_up_comparison()
TTFT = Figure("TTFT p50", "ms")


def measured(values: Sequence[float]) -> Measured:
    """What is made of the trials of a figure, by way of a format's load times."""
    row = BASE.row("q4_0")
    assert row.serving
    serving = row.serving.model_copy(update={"load_seconds": estimate(values)})
    return of_row(row.model_copy(update={"serving": serving}))[LOAD]


def verdict(old: Sequence[float], new: Sequence[float], figure: Figure = TTFT) -> str:
    return judged("q4_0", figure, measured(old), measured(new)).verdict


def with_row(name: str, base: Comparison = BASE, **update: object) -> Comparison:
    rows = tuple(
        Row.model_validate({**row.model_dump(), **update}) if row.name == name else row
        for row in base.rows
    )
    return base.model_copy(update={"rows": rows})


def with_output(name: str, values: Sequence[float]) -> Comparison:
    """The comparison with other output tokens per second in the trials of a format."""
    serving = BASE.row(name).model_dump()["serving"]
    serving["loaded"]["output"] = estimate(values)
    return with_row(name, serving=serving)


def of(found: Sequence[Change], name: str, figure: str) -> Change:
    return next(c for c in found if (c.format, c.figure) == (name, figure))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((100, 101, 99), (120, 121, 119), "regressed"),
        ((120, 121, 119), (100, 101, 99), "improved"),
        ((100, 101, 99), (107, 108, 106), "regressed"),
        ((100, 100.01, 99.99), (105.1, 105.11, 105.09), "regressed"),  # over the smaller one
        ((100, 101, 99), (104, 105, 103), "same"),  # beyond the intervals, within 5 %
        ((100, 120, 80), (130, 156, 104), "same"),  # beyond 5 %, the intervals meet
        ((100, 100, 100), (100, 100, 100), "same"),
        ((100,), (200,), "unknown"),
        ((100, 101, 99), (200,), "unknown"),
        ((100,), (103,), "same"),  # no interval is needed to see that little changed
        ((0, 0, 0), (10, 11, 9), "regressed"),
    ],
)
def test_the_rule_by_example(old, new, expected):
    assert verdict(old, new) == expected


def test_twice_the_variation_is_no_regression_though_the_intervals_are_apart():
    values = [90.0, 110.0] * 20  # 40 trials: a narrow interval around a wide scatter
    moved = [1.15 * value for value in values]
    assert measured(values).interval[1] < measured(moved).interval[0]
    assert verdict(values, moved) == "same"
    assert verdict(values, [1.3 * value for value in values]) == "regressed"


def test_the_variation_is_that_of_a_sample():
    assert measured((90, 100, 110)).cv == pytest.approx(0.1)
    assert measured((90,)).cv == 0 and measured((0, 0)).cv == 0


def test_of_a_rate_less_is_worse():
    assert verdict((100, 101, 99), (120, 121, 119), OUTPUT) == "improved"
    assert verdict((120, 121, 119), (100, 101, 99), OUTPUT) == "regressed"


trials = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=6)


@given(trials, trials, st.sampled_from([TTFT, OUTPUT, DIVERGENCE]))
def test_exchanging_the_sides_exchanges_the_verdicts(old, new, figure):
    assert verdict(new, old, figure) == OPPOSITE[verdict(old, new, figure)]


@settings(max_examples=12)
@given(st.floats(0.3, 3.0), st.sampled_from(["q4_0", "bf16", "nf4"]))
def test_exchanging_two_comparisons_exchanges_every_verdict(factor, name):
    before = BASE.row(name).serving.loaded.output
    other = with_output(name, [factor * value for value in before.values])
    forward, back = changes(BASE, other), changes(other, BASE)
    assert [OPPOSITE[c.verdict] for c in forward] == [c.verdict for c in back]
    assert [(c.old, c.new) for c in forward] == [(c.new, c.old) for c in back]


@given(trials)
def test_the_same_is_the_same(values):
    assert verdict(values, values) == "same"


def test_a_comparison_with_itself_has_neither_changes_nor_differences():
    found = changes(BASE, BASE)
    assert len(found) > 100
    doubtful = {(c.format, c.verdict) for c in found if c.verdict != "same"}
    assert doubtful == {("awq", "unknown")}, "its loaded level has a problem"
    assert of(found, "awq", "prefill").verdict == "same"
    assert differences(BASE, BASE) == () and regressed(found) == ()


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("noise", [0.01, 0.05, 0.15, 0.3])
def test_noise_is_seldom_a_regression(count, noise):
    draw = random.Random(20261122)
    rounds = 400

    def sides() -> tuple[Measured, Measured]:
        made = [estimate([draw.lognormvariate(4.6, noise) for _ in range(count)]) for _ in "ab"]
        return tuple(Measured(e.mean, (e.low, e.high), cv(e)) for e in made)

    found = [judged("", TTFT, *sides()).verdict for _ in range(rounds)]
    assert found.count("regressed") < 0.01 * rounds
    assert found.count("improved") < 0.01 * rounds


def cv(value: Estimate) -> float:
    """Standard deviation / mean, computed in another way than in the product."""
    count = len(value.values)
    squares = sum(v * v for v in value.values) / count - value.mean**2
    return (max(squares, 0.0) * count / (count - 1)) ** 0.5 / value.mean


@pytest.mark.parametrize(("noise", "least", "most"), [(0.03, 0.9, 1.0), (0.15, 0.0, 0.2)])
def test_three_trials_show_a_third_slower_only_where_they_scatter_little(noise, least, most):
    draw = random.Random(20261122)
    found = 0
    for _ in range(300):
        old, new = ([draw.gauss(m, noise * m) for _ in range(3)] for m in (100.0, 133.0))
        found += verdict(old, new) == "regressed"
    assert least * 300 <= found <= most * 300


def test_what_was_measured_and_now_fails_is_a_regression():
    failed = {"status": "failed", "reason": "it broke", "size": None, "quality": None,
              "serving": None, "tasks": ()}  # fmt: skip
    for status, expected in (("failed", "regressed"), ("unavailable", "unknown")):
        other = with_row("q4_0", **{**failed, "status": status})
        forward = changes(BASE, other)
        assert [c.verdict for c in forward if c.format == "q4_0"] == [expected]
        assert "it broke" in of(forward, "q4_0", "status").why
        assert of(changes(other, BASE), "q4_0", "status").verdict == OPPOSITE[expected]


def test_a_refused_format_shows_its_quality():
    row = BASE.row("q4_0")
    quality = {**row.quality, "perplexity_ratio": {"value": 2.0, "low": 1.9, "high": 2.1}}
    other = with_row("q4_0", status="refused", reason="too bad", quality=quality, size=None,
                     serving=None, tasks=())  # fmt: skip
    found = {c.figure: c.verdict for c in changes(BASE, other) if c.format == "q4_0"}
    assert found == {"status": "regressed", "perplexity ratio": "regressed",
                     "KL divergence": "same"}  # fmt: skip


def test_quality_of_another_text_is_not_compared():
    quality = {**BASE.row("q4_0").quality, "ids_sha256": "2e" * 32}
    quality["perplexity_ratio"] = {"value": 2.0, "low": 1.9, "high": 2.1}
    change = of(changes(BASE, with_row("q4_0", quality=quality)), "q4_0", "perplexity ratio")
    assert change.verdict == "unknown" and "text" in change.why


def test_a_divergence_near_nothing_does_not_regress():
    tiny, larger = (Measured(m, (0.9 * m, 1.1 * m)) for m in (1e-5, 3e-5))
    assert judged("f16", DIVERGENCE, tiny, larger).verdict == "same"
    assert judged("f16", TTFT, tiny, larger).verdict == "regressed"


def test_a_figure_of_one_side_is_unknown_and_never_a_number():
    serving = BASE.row("q4_0").model_dump()["serving"] | {"peak_rss_bytes": None}
    change = of(changes(BASE, with_row("q4_0", serving=serving)), "q4_0", "peak memory")
    assert (change.verdict, change.new, change.ratio) == ("unknown", None, None)
    assert change.why == "not measured in the new result"


def test_formats_of_one_side_are_told_and_not_compared():
    fewer = BASE.model_copy(update={"rows": tuple(r for r in BASE.rows if r.name != "q6_k")})
    found = differences(BASE, fewer)
    assert [(d.kind, d.what, d.new) for d in found if d.kind == "formats"] == [
        ("formats", "q6_k", "–")
    ]
    assert not any(c.format == "q6_k" for c in changes(BASE, fewer))


def test_workload_and_model_make_figures_incomparable_and_a_machine_does_not():
    host = BASE.host.model_copy(update={"cpu": "Other CPU", "load_before": (3.0, 3.0, 3.0)})
    moved = BASE.model_copy(update={"host": host, "versions": {"deployer": "0.2.0"}})
    found = differences(BASE, moved)
    assert [(d.kind, d.what) for d in found] == [
        ("host", "cpu"), ("versions", "deployer"), ("versions", "python"),
    ]  # fmt: skip
    assert incomparable(found) == ()
    workload = BASE.workload.model_copy(update={"users": 16})
    other = moved.model_copy(update={"workload": workload, "source": {"package": "x==2"}})
    assert {d.kind for d in incomparable(differences(BASE, other))} == {"workload", "model"}
    assert differences(BASE, other)[0].what == "users"


def test_contended_trials_and_other_tools_are_told():
    quiet = tuple(t.model_copy(update={"contended": False}) for t in BASE.trials)
    found = differences(BASE, BASE.model_copy(update={"trials": quiet}))
    assert [(d.kind, d.what) for d in found] == [("contended", "{}, trial {}".format(*CONTENDED))]
    updated = with_row("q4_0", tools={"xllamacpp": "2027.1"})
    updated = with_row("q8_0", updated, tools={"xllamacpp": "2027.1"})
    found = differences(BASE, updated)
    assert [(d.what, d.new) for d in found] == [("xllamacpp of q8_0, q4_0", "2027.1")]


def load_test(factor: float = 1.0, ci95: tuple[float, float] | None = None) -> LoadTestResult:
    made = result(closed_loop())
    stage = made.stages[0]
    output = factor * stage.throughput.output_tokens_per_s
    throughput = stage.throughput.model_copy(update={"output_tokens_per_s": output})
    spread = Trials(n=3, mean=output, cv=0.01, ci95=ci95)
    trials = {"output_tokens_per_s": spread} if ci95 else {}
    stages = (stage.model_copy(update={"throughput": throughput, "trials": trials}),)
    return made.model_copy(update={"stages": stages})


def test_load_tests_of_one_trial_show_no_regression_and_say_why():
    change = of(changes(load_test(), load_test(0.5)), "8 users", "output")
    assert change.verdict == "unknown" and "one trial" in change.why
    assert {c.verdict for c in changes(load_test(), load_test())} == {"same"}


def test_load_tests_with_intervals_show_one():
    mean = load_test().trials.mean
    old = load_test(1.0, (0.99 * mean, 1.01 * mean))
    new = load_test(0.8, (0.79 * mean, 0.81 * mean))
    assert [c.figure for c in regressed(changes(old, new))] == ["output"]
    assert regressed(changes(new, old)) == ()


def test_latencies_of_repeated_load_tests_are_judged_too():
    def slower(factor: float) -> LoadTestResult:
        made = load_test()
        mean = factor * made.stages[0].latency_ms.ttft.p95
        spread = Trials(n=3, mean=mean, cv=0.01, ci95=(0.99 * mean, 1.01 * mean))
        stage = made.stages[0].model_copy(update={"trials": {"ttft_p95_ms": spread}})
        return made.model_copy(update={"stages": (stage,)})

    assert [c.figure for c in regressed(changes(slower(1.0), slower(1.3)))] == ["TTFT p95"]
    assert regressed(changes(slower(1.0), slower(1.03))) == ()


def test_load_tests_differ_by_what_was_asked_not_by_what_came_back():
    old, new = load_test(), load_test()
    assert differences(old, new) == ()
    longer = new.workload.model_copy(update={"output": old.workload.output.model_copy(
        update={"mean": 1.0})})  # fmt: skip
    server = {**new.server, "endpoint": "http://127.0.0.1:1", "version": "b7000"}
    found = differences(old, new.model_copy(update={"workload": longer, "server": server}))
    assert [(d.kind, d.what) for d in found] == [("versions", "server version")]
    other = new.workload.model_copy(update={"prompt_tokens": 1000})
    found = differences(old, new.model_copy(update={"workload": other}))
    assert [d.what for d in incomparable(found)] == ["prompt_tokens"]


def test_an_invalid_load_test_shows_nothing():
    bad = load_test()
    client = bad.client.model_copy(update={"valid": False, "problems": ("it was late",)})
    found = changes(load_test(), bad.model_copy(update={"client": client}))
    assert {(c.verdict, c.why) for c in found} == {("unknown", "it was late")}


def test_two_kinds_of_results_are_refused():
    for function in (changes, differences):
        with pytest.raises(UsageError, match="no figures in common"):
            function(BASE, load_test())


def test_stored_results_are_read_by_folder_or_file(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / COMPARISON).write_text(BASE.model_dump_json())
    (tmp_path / "b" / RESULT).write_text(load_test().model_dump_json(by_alias=True))
    assert read_stored(tmp_path / "a") == read_stored(tmp_path / "a" / COMPARISON) == BASE
    assert read_stored(tmp_path / "b") == read_stored(tmp_path / "b" / RESULT) == load_test()
    (tmp_path / "a" / COMPARISON).write_text("{}")
    for bad in (tmp_path / "a", tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="no stored comparison"):
            read_stored(bad)


def test_the_table_begins_with_what_regressed_and_leaves_out_what_stayed():
    slower = [0.6 * value for value in BASE.row("q4_0").serving.loaded.output.values]
    found = changes(BASE, with_output("q4_0", slower))
    columns, rows = regression_table(found)
    assert rows[0][:2] == ("q4_0", "output") and rows[0][columns.index("new / old")] == "0.60"
    assert rows[0][2:4] == ("186 tok/s", "112 tok/s")
    verdicts = [row[columns.index("verdict")] for row in rows]
    assert verdicts == sorted(verdicts, key=ORDER.index) and "same" not in verdicts
    assert len(regression_table(found, every=True)[1]) == len(found)
    assert regression_lines(found)[1] == "Regression in q4_0."
    assert regression_lines(changes(BASE, BASE))[-1] == "No regression was found."
    unknown = [c for c in found if c.verdict == "unknown"]
    assert "Nothing can be told" in regression_lines(unknown)[-1]
    assert "no format in common" in regression_lines(())[0]


def test_differences_are_lines_and_say_what_they_mean():
    workload = BASE.workload.model_copy(update={"users": 16})
    lines = difference_lines(differences(BASE, BASE.model_copy(update={"workload": workload})))
    assert lines[0] == "another workload: users: 8 → 16"
    assert "not asked the same" in lines[-1]
    lines = difference_lines(differences(BASE, BASE.model_copy(update={"git": None})))
    assert lines[-1] == "What follows may come from these differences."
    assert lines[0] == "another version: git: 0123456789ab… → –"
    assert difference_lines(()) == []


def test_every_unit_is_written_with_its_figure():
    rows = regression_table(changes(BASE, BASE), every=True)[1]
    shown = {row[1]: row[2] for row in rows if row[0] == "q4_0"}
    assert shown["weights"] == "90.1 MB" and shown["load time"].endswith(" s")
    assert shown["KL divergence"] == "0.1929 nats" and shown["perplexity ratio"] == "1.104"
    assert shown["goodput"] == "100 %" and shown["TTFT p95"].endswith(("ms", " s"))
