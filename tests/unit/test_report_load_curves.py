"""The pages of sweeps, trials, conversations and failures."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from html_page import Page
from loadtest_samples import closed_loop, result, sample

from deployer import report
from deployer.loadtest import exit_code, measure
from deployer.loadtest.levels import level_of
from deployer.loadtest.measure import Part, Window
from deployer.metrics import Limits
from deployer.recipe import LoadTest
from deployer.report import load_curves


def stage_at(rate: float, took: float, growth: float = 0.0):
    """A stage of requests due every 1 / rate seconds for 20 s, each taking `took` seconds."""
    workload = LoadTest(profile="sweep", duration=20, warmup=0)
    samples = []
    for number in range(int(20 * rate)):
        due = number / rate
        first, last = due + took / 2 + growth * due, due + took + growth * due
        samples.append(
            sample(id=f"0-0-{number}", due=due, opened=due, sent=due, first=first,
                   first_output=first, last=last, closed=last, chunks=(first, last))
        )  # fmt: skip
    part = Part(tuple(samples), Window(0, 20))
    return measure.stage(level_of(workload, rate), [part], Limits(e2e=2.0)), samples


@pytest.fixture(scope="module")
def swept():
    made = [stage_at(2, 0.4), stage_at(4, 0.6), stage_at(8, 0.8, growth=0.5)]
    base = result(closed_loop())
    work = base.workload.model_copy(
        update={"profile": "sweep", "loop": "open", "target": {"rate": 2.0, "duration_s": 20.0}}
    )
    samples = [replace(s, stage=i) for i, (_, each) in enumerate(made) for s in each]
    stages = tuple(stage for stage, _ in made)
    return base.model_copy(update={"stages": stages, "knee": 1, "workload": work}), samples


def test_a_sweep_shows_its_curves_and_the_knee(swept):
    text = report.html(*swept)
    page = Page(text)
    assert page.open == [] and page.loads == []
    assert text.count('class="line ') == 4, "median and p95; sent and good"
    assert text.count(">knee</span>") == 2
    assert "Knee at 4 requests/s" in text and "2 to 8 requests/s, each for 20 s" in text
    assert "E2E from schedule" in text and "highest rate below the lowest saturated" in text


def test_the_table_of_a_sweep_names_the_knee_and_what_is_saturated(swept):
    rows = report.table(swept[0])[1]
    assert [row[-1] for row in rows] == ["–", "knee", "saturated"]
    assert rows[1][1] == "4" and rows[1][2].startswith("3.")


def test_a_sweep_whose_lowest_rate_is_too_much_says_so(swept):
    made = swept[0].model_copy(update={"knee": None})
    assert report.verdict(made) == ("bad", "Saturated at every rate")
    assert (exit_code(made), exit_code(swept[0])) == (1, 0)
    assert ">knee</span>" not in report.html(made, swept[1])


def test_curves_lie_in_the_plot_and_rise_with_the_rate(swept):
    for chart in (
        load_curves.latency_curve(swept[0].stages, 1),
        load_curves.goodput_curve(swept[0].stages, 1),
    ):
        assert all(0 <= p.x <= 100 and 0 <= p.y <= 100 for p in chart.points)
        assert 0 < chart.knee < 100
    good = [p for p in load_curves.goodput_curve(swept[0].stages, 1).points if p.kind == "good"]
    assert good[0].y > good[1].y, "more requests, more of them good, below the knee"


def test_latencies_far_apart_need_a_logarithmic_axis(swept):
    assert load_curves.latency_curve(swept[0].stages, 1).log is True
    near = [stage_at(2, 0.4)[0], stage_at(4, 0.6)[0]]
    chart = load_curves.latency_curve(near, 1)
    assert chart.log is False and chart.levels[0].label == "0"


def test_one_stage_or_one_without_answers_has_no_curve(swept):
    assert load_curves.latency_curve(swept[0].stages[:1], 0).lines == ()
    empty = stage_at(2, 0.4)[0].model_copy(update={"offered": None})
    assert load_curves.goodput_curve([empty, empty], None).lines == ()


def test_every_failure_is_in_a_bar():
    samples = closed_loop(errors=7)
    bars = load_curves.errors(samples).bars
    told = [int(n) for bar in bars for n in re.findall(r"(\d+) ", bar.title)]
    assert sum(told) == 7
    assert load_curves.errors(closed_loop()).bars == ()
    assert "Failed requests over time" in report.html(result(samples), samples)


def test_trials_are_told_with_their_interval():
    level = level_of(LoadTest(profile="concurrent", users=8))
    parts = [Part(tuple(closed_loop(seed=seed)), Window(3, 23)) for seed in (1, 2, 3)]
    stage = measure.stage(level, parts, Limits())
    base = result(closed_loop())
    work = base.workload.model_copy(update={"trials": 3})
    text = report.html(base.model_copy(update={"stages": (stage,), "workload": work}))
    assert "over 3 trials" in text and "95 % interval of the mean" in text
    assert "ttft p95" in text and "3 trials, about 64 tokens in" in text


def test_the_questions_of_a_conversation_are_told_apart():
    samples = [sample(id=str(turn), turn=turn, prompt_tokens=50 * (turn + 1)) for turn in (0, 1)]
    text = report.html(result(samples, LoadTest(profile="chat", users=1)), samples)
    assert "question of the conversation" in text
    assert "Conversations go on from their own history" in text
