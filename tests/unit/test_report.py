import re

import pytest
from html_page import EVIL, Page
from loadtest_samples import closed_loop, result, sample

from deployer import report
from deployer.loadtest.measure import Worker
from deployer.recipe import LoadTest, Slo
from deployer.report import charts, words

WORKLOAD = LoadTest(
    profile="concurrent", users=8, duration=20, warmup=3, slo=Slo(ttft_p95_ms=900.0)
)


@pytest.fixture(scope="module")
def good():
    samples = closed_loop()
    return result(samples, WORKLOAD), samples


def test_the_page_is_whole_and_loads_nothing(good):
    text = report.html(*good)
    page = Page(text)
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.tags and "link" not in page.tags
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_the_page_shows_the_numbers_and_what_they_mean(good):
    text = report.html(*good)
    stage = good[0].stages[0]
    for shown in (
        words.rate(stage.throughput.output_tokens_per_s),
        words.ms(stage.latency_ms.ttft.p95),
        "All objectives met",
        "request sent to the first chunk",
        "smollm2-q4_0",
        "Example CPU",
        "Once upon a time",
        "llama-server --parallel 8",
        good[0].run.id,
    ):
        assert shown in text


def test_every_request_is_drawn(good):
    text = report.html(*good)
    assert len(re.findall(r'<rect class="stream', text)) == len(good[1])


def test_everything_from_outside_is_escaped(good):
    made = good[0].model_copy(
        update={
            "server": {"model": EVIL, "engine": EVIL, "endpoint": "http://x", "argv": [EVIL]},
            "answers": tuple(
                a.model_copy(update={"text": EVIL, "prompt": EVIL}) for a in good[0].answers
            ),
        }
    )
    assert "<script" not in report.html(made, good[1])
    assert "<script" not in report.summary_markdown(made)


NO_ANSWER = {"first": None, "first_output": None, "last": None, "chunks": (), "n_first": None}
REFUSED = sample(error="connect", output_tokens=None, status=None, **NO_ANSWER)


@pytest.mark.parametrize("samples", [[], [sample(phase="warmup")], [REFUSED]])
def test_a_run_without_a_good_answer_still_makes_a_page(samples):
    made = result(samples, WORKLOAD)
    text = report.html(made, samples)
    assert Page(text).open == []
    assert "There was no good answer" in text
    assert "nan" not in text.lower().replace("nano", "")


def test_a_page_without_raw_requests_has_no_charts(good):
    assert "<rect" not in report.html(good[0])


@pytest.mark.parametrize(
    ("errors", "worker", "limit", "kind", "text"),
    [
        (0, (1.0, 5.0), 900.0, "good", "All objectives met"),
        (2, (1.0, 5.0), 900.0, "bad", "Too many errors"),
        (0, (30.0, 5.0), 1.0, "unsure", "Not a valid measurement"),
        (0, (1.0, 5.0), 1.0, "bad", "1 objective missed"),
    ],
)
def test_the_verdict(errors, worker, limit, kind, text):
    samples = closed_loop(errors=errors)
    work = WORKLOAD.model_copy(update={"slo": Slo(ttft_p95_ms=limit)})
    made = result(samples, work, Worker(0.0, 23.0, *worker))
    assert report.verdict(made) == (kind, text)
    assert text in report.html(made, samples)


def test_errors_are_listed_with_their_meaning():
    samples = closed_loop(errors=2)
    text = report.html(result(samples, WORKLOAD), samples)
    assert "the stream ended without [DONE]" in text and "status 5xx" in text


def test_the_table_has_the_agreed_columns(good):
    columns, rows = report.table(good[0])
    assert columns[0] == "stage" and columns[-1] == "flags" and len(rows) == 1
    row = dict(zip(columns, rows[0], strict=True))
    assert row["target"] == "8" and row["achieved"] == "8.0"
    assert row["ok/err"].endswith("/0") and row["goodput"] == "100 %" and row["cache"] == "12.5 %"
    assert row["TTFT p50 / p99"].endswith(" / –"), "p99 of less than 100 requests is not given"


def test_the_table_says_when_a_measurement_is_invalid():
    made = result(closed_loop(), WORKLOAD, Worker(0.0, 23.0, 30.0, 5.0))
    assert report.table(made)[1][0][-1] == "not_valid"


def test_the_summary_is_a_table_with_every_gate(good):
    text = report.summary_markdown(*good)
    header, rule, row = [line for line in text.splitlines() if line.startswith("|")][:3]
    assert header.count("|") == rule.count("|") == row.count("|") == 12
    assert "| ttft_p95_ms <= 900 |" in text and "| error_rate <= 0 |" in text


def test_pages_name_the_files():
    assert set(report.PAGES) == {"report.html", "summary.md"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0.00 ms"), (8.421, "8.42 ms"), (9.996, "10.0 ms"), (99.96, "100 ms"),
     (842.4, "842 ms"), (999.9, "1.00 s"), (12_345.0, "12.3 s")],
)  # fmt: skip
def test_milliseconds(value, text):
    assert words.ms(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (1.0, "100 %"), (0.0, "0 %"), (0.99999, "99.9 %"), (0.00001, "0.1 %")],
)
def test_shares_never_round_to_all_or_nothing(value, text):
    assert words.share(value) == text


def test_a_models_path_is_not_shown_whole():
    assert words.short_model("/srv/models/x.gguf") == "x.gguf"
    assert words.short_model("org/model") == "org/model"


def test_axis_ticks_are_round_and_inside():
    ticks = charts.axis(0, 437, 5, "ms")
    assert [t.label for t in ticks] == ["0", "100", "200", "300", "400 ms"]
    assert all(0 <= t.at <= 100 for t in charts.axis(24.7, 47.1))


def test_histograms_count_every_value():
    values = [float(i % 37) for i in range(400)]
    chart = charts.distribution(values)
    assert sum(int(bar.title.rpartition(" ")[2]) for bar in chart.bars) == 400
    assert charts.distribution([5.0] * 30).bars, "all values equal"
    few = charts.distribution([1.0, 2.0])
    assert len(few.dots) == 2 and not few.bars


def test_lanes_hold_one_request_at_a_time():
    chart = charts.timeline(closed_loop(users=8), 20.0)
    assert chart.lanes == 8
    assert all(bar.x >= 0 and bar.x + bar.width <= 100.2 for bar in chart.bars)


def test_many_requests_become_dots():
    chart = charts.timeline(closed_loop(users=64), 20.0)
    assert chart.dots and not chart.bars and len(chart.dots) <= charts.MOST_BARS * 1.1


def test_the_rate_adds_up_to_all_tokens():
    samples = closed_loop(users=2, seconds=10.0)
    chart = charts.rate(samples, 30.0)
    assert chart.path.startswith("M 0 ") and chart.path.endswith("H 100.00")
    assert charts.rate([], None).path == ""
