import ast
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from loadtest_samples import sample

from deployer import metrics
from deployer.metrics import Limits, Sample


def test_ttft_counts_from_sent_and_e2e_ends_at_the_last_token():
    one = sample(due=0.5, closed=2.0)
    assert metrics.ttft(one) == pytest.approx(0.1)
    assert metrics.e2e(one) == pytest.approx(0.2)
    assert metrics.e2e_from_schedule(one) == pytest.approx(0.7)
    assert metrics.queue(one) == pytest.approx(0.5)


def test_tpot_leaves_the_tokens_of_the_first_chunk_out():
    assert metrics.tpot(sample()) == pytest.approx(0.01)
    assert metrics.tpot(sample(n_first=6)) == pytest.approx(0.02)


@pytest.mark.parametrize(
    "changes", [{"output_tokens": None}, {"n_first": None}, {"n_first": 11}, {"first": None}]
)
def test_tpot_is_unknown_rather_than_wrong(changes):
    assert metrics.tpot(sample(**changes)) is None


def test_inter_chunk_latency_is_the_raw_gaps():
    assert metrics.icl(sample(chunks=(1.0, 1.25, 1.3))) == pytest.approx([0.25, 0.05])
    assert metrics.icl(sample(chunks=(1.0,))) == []


@pytest.mark.parametrize(
    ("tokens", "chunks", "first_chars", "chars", "expected"),
    [
        (64, 64, 2, 300, 1),
        (8, 7, 2, 30, 1),  # the end-of-text token has no chunk
        (20, 10, 8, 80, 2),
        (20, 1, 80, 80, 20),
        (5, 2, 0, 0, 1),
    ],
)
def test_tokens_of_the_first_chunk(tokens, chunks, first_chars, chars, expected):
    assert metrics.first_chunk_tokens(tokens, chunks, first_chars, chars) == expected


def test_percentiles_are_exact_and_linear():
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [metrics.percentile(values, p) for p in (0, 25, 50, 90, 100)] == [1, 2, 3, 4.6, 5]
    assert metrics.percentile([7.0], 99) == 7.0
    with pytest.raises(ValueError, match="no percentile"):
        metrics.percentile([], 50)


def test_p99_needs_a_hundred_values():
    assert metrics.summarize(float(i) for i in range(99)).p99 is None
    full = metrics.summarize(float(i) for i in range(101))
    assert (full.n, full.mean, full.p50, full.p99) == (101, 50, 50, 99)


def test_a_summary_leaves_the_unknown_out_and_scales():
    assert metrics.summarize([0.1, None, 0.3], 1000).mean == pytest.approx(200)
    assert metrics.summarize([None]) == metrics.Summary(0)


def test_limits():
    assert Limits().met_by(sample())
    assert Limits(ttft=0.1001, tpot=0.0101, e2e=0.2001).met_by(sample())
    assert not Limits(ttft=0.09).met_by(sample())
    assert not Limits(tpot=0.02).met_by(sample(output_tokens=None)), "unknown is not good"
    assert not Limits().met_by(sample(error="truncated"))


def test_tokens_within_a_window_add_up_to_all_of_them():
    one = sample(n_first=3, output_tokens=23)
    parts = [metrics.tokens_within(one, 1 + i / 20, 1 + (i + 1) / 20) for i in range(6)]
    assert sum(parts) == pytest.approx(23)
    assert parts[0] == parts[1] == 0
    assert metrics.tokens_within(sample(output_tokens=None), 0, 9) == 0


def test_the_end_token_counts_when_it_arrives():
    stopped = sample(chunks=(1.1, 1.15), last=1.2, n_first=1, output_tokens=3)
    assert metrics.tokens_within(stopped, 1.18, 1.3) == pytest.approx(1)


def test_tokens_that_came_in_one_chunk_count_at_that_moment():
    assert metrics.tokens_within(sample(chunks=(1.1,), last=1.1), 1.05, 1.15) == 11


def test_requests_in_flight():
    pair = [sample(sent=0.0, closed=4.0), sample(sent=2.0, closed=9.0)]
    assert metrics.in_flight(pair, 0.0, 4.0) == pytest.approx(1.5)
    assert metrics.in_flight(pair, 4.0, 4.0) == 0


@pytest.mark.parametrize(
    "text", ["", " \n ", "RAM" * 60, "RAM" * 60 + "RA", "no no " * 20, "!" * 64]
)
def test_degenerate_text(text):
    assert metrics.is_degenerate(text)


@pytest.mark.parametrize("text", ["Paris.", "ha ha ha ha", "The quick fox. The slow dog. The end."])
def test_text_that_is_fine(text):
    assert not metrics.is_degenerate(text)


def test_a_sample_survives_json_and_shifting():
    one = sample()
    assert Sample.from_json({**one.as_json(), "of_a_later_version": 1}) == one
    moved = one.shifted(1.0)
    assert (moved.sent, moved.first, moved.chunks[0]) == (0.0, 0.1, 0.1)
    assert replace(one, first=None).shifted(1.0).first is None


def test_metrics_needs_nothing_but_the_standard_library():
    """Locust's process imports it: it must pull in nothing heavy and none of our modules."""
    tree = ast.parse(Path(metrics.__file__).read_text("utf-8"))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or "deployer"] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names])
    }  # fmt: skip
    assert imported <= sys.stdlib_module_names
