import math

import pytest
from html_page import EVIL, Page

from deployer import report
from deployer.quality import compared
from deployer.report import quality, quality_charts

WINDOW = 65
LIMITS = {
    "max_perplexity": 200.0, "max_perplexity_ratio": 1.5, "max_kl_divergence": 1.0,
    "min_top1_agreement": 0.5,
}  # fmt: skip
MIX = {"a": "q4_k", "b": "q8_0"}
SENSITIVITY = {
    "groups": [
        {"name": f"blk.{n}.ffn", "bytes": {}, "kld": {"q4_k": n / 50, "q8_0": 1e-4}}
        for n in range(30)
    ],
    "curve": [
        {"bits_per_weight": bits, "kl_divergence": 0.4 / 4**bits, "types": MIX}
        for bits in (3.0, 4.5, 6.0)
    ],
    "references": [
        {"name": "q4_0", "bits_per_weight": 4.6, "kl_divergence": 0.02},
        {"name": "q4_k_m", "bits_per_weight": 4.62, "kl_divergence": 0.019},
    ],
}  # fmt: skip


def scored(windows=4):
    """A quality record of made-up losses, and the divergence of every token."""
    count = windows * (WINDOW - 1)
    nll = [2.0 + (i % 13) / 10 for i in range(count)]
    kld = [0.001 * (1 + i % 50) for i in range(count)]
    scores = {
        "nll": [value + 0.04 for value in nll], "top1": [i % 10 and 1 for i in range(count)],
        "kld": kld, "cosine": [0.99] * count, "window": WINDOW,
    }  # fmt: skip
    record = {
        "perplexity": {"value": 13.4}, "corpus": "evaluation-en.txt", "corpus_sha256": "c0ffee",
        "window": WINDOW, "windows": windows, "tokens": count, "bos": True, "ids_sha256": "1d5",
        "method": "library", "engine": "engine 1.0", "sample": "It was.",
        **compared(scores, {"nll": nll, "top1": [1] * count}),
    }  # fmt: skip
    return record, kld


@pytest.fixture(scope="module")
def page():
    record, kld = scored()
    return report.quality_html(record, SENSITIVITY, name="demo-q4", limits=LIMITS, kld=kld)


def test_the_page_is_whole_and_loads_nothing(page):
    parsed = Page(page)
    assert parsed.open == [] and parsed.loads == []
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert "url(" not in page and "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page and "nan" not in page.lower()


def test_the_page_shows_figures_limits_and_what_they_mean(page):
    record, _ = scored()
    ratio = record["perplexity_ratio"]
    for shown in (
        "demo-q4", "All limits kept", "13.40", quality.number(ratio["value"]),
        f"{quality.number(ratio['low'])} to {quality.number(ratio['high'])}", "≤ 1.5", "≥ 50 %",
        quality.number(record["kl_divergence"]["p99"]), "sum of p ln(p / q)", "c0ffee", "1d5",
        "4 of 65 tokens, BOS included", "engine 1.0", "It was.", "evaluation-en.txt",
    ):  # fmt: skip
        assert shown in page


def test_every_window_has_a_dot_and_a_bar(page):
    assert page.count('title="window ') == 4
    assert page.count("<title>window ") == 4


def test_the_curve_names_its_references(page):
    assert ">q4_0</span>" in page and ">q4_k_m</span>" in page
    assert "1 q4_k, 1 q8_0" in page
    assert "rounded to q4_k" in page and ">blk.29.ffn<" in page and ">blk.2.ffn<" not in page


def test_what_was_not_measured_is_left_out():
    record, _ = scored()
    for name in ("baseline_perplexity", "perplexity_ratio", "kl_divergence", "top1_agreement",
                 "hidden_cosine", "per_window"):  # fmt: skip
        del record[name]
    text = report.quality_html(record)
    assert "<rect" not in text and "<line" not in text and "No limit set" in text
    assert "Top-1" not in text and "KL divergence, mean" not in text


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [
        ({}, ("unsure", "No limit set")),
        (LIMITS, ("good", "All limits kept")),
        ({**LIMITS, "max_perplexity": 13.0}, ("bad", "1 limit missed")),
        ({"max_kl_divergence": 0.01, "min_top1_agreement": 0.95}, ("bad", "2 limits missed")),
    ],
)
def test_the_verdict(limits, verdict):
    record, _ = scored()
    assert quality.quality_verdict(quality.figures(record, limits)) == verdict
    assert verdict[1] in report.quality_html(record, limits=limits)


def test_everything_from_outside_is_escaped():
    record, _ = scored()
    record |= dict.fromkeys(("corpus", "engine", "sample", "method"), EVIL)
    sensitivity = {**SENSITIVITY, "references": [{**SENSITIVITY["references"][0], "name": EVIL}]}
    assert "<script" not in report.quality_html(record, sensitivity, name=EVIL)


def test_an_endless_perplexity_still_makes_a_page():
    record, _ = scored()
    record["per_window"][0]["perplexity"] = math.inf
    record["per_window"][1]["kl_divergence"] = math.nan
    text = report.quality_html(record, limits=LIMITS, kld=[math.inf, math.nan])
    assert "<rect" not in text and 'class="diagonal"' not in text


def test_equal_windows_lie_on_the_diagonal():
    windows = [{"perplexity": v, "baseline_perplexity": v} for v in (8.0, 9.5, 13.0)]
    assert all(
        dot.x == pytest.approx(100 - dot.y) for dot in quality_charts.windows_scatter(windows).dots
    )
    worse = quality_charts.windows_scatter([{"perplexity": 9.0, "baseline_perplexity": 8.0}]).dots
    assert worse[0].x < 100 - worse[0].y


def test_the_histogram_counts_every_token():
    plot = quality_charts.token_divergence([0.0, 1e-9, 0.002, 0.002, 10.0])
    counts = [int(bar.title.rpartition(" ")[2]) for bar in plot.bars]
    assert sorted(counts) == [1, 2, 2] and plot.n == 5
    assert all(0 <= bar.x <= 100 for bar in plot.bars)


def test_labels_of_near_references_do_not_touch():
    near = [
        {"name": f"type{n}", "bits_per_weight": 4.6 + n / 100, "kl_divergence": 0.02}
        for n in range(5)
    ]
    named = quality_charts.sensitivity_curve({**SENSITIVITY, "references": near}).named
    places = [(dot.side, dot.shift) for dot in named]
    assert len(named) == 5 and len(set(places)) == 5


def test_a_logarithmic_axis_has_round_ticks():
    assert [t.label for t in quality_charts.log_axis(1e-5, 10)] == [
        "1e-05", "0.0001", "0.001", "0.01", "0.1", "1", "10",
    ]  # fmt: skip
    assert [t.label for t in quality_charts.log_axis(0.9, 6)] == ["1", "2", "5"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.inf, "inf"), (13.4712, "13.47"), (1.02731, "1.0273"), (1284.4, "1,284"),
     (2.1e-5, "2.1e-05"), (0.0, "0.0000"), (1.3e9, "1.3e+09")],
)  # fmt: skip
def test_numbers(value, text):
    assert quality.number(value) == text


def test_a_long_curve_is_listed_in_part_and_what_costs_nothing_is_not_drawn():
    record, _ = scored()
    curve = [
        {"bits_per_weight": 4 + n / 10, "kl_divergence": (99 - n) / 100, "types": MIX}
        for n in range(100)
    ]
    text = report.quality_html(record, {**SENSITIVITY, "curve": curve})
    assert text.count('<td class="types">') == quality.MOST_MIXES
    assert ">4.00</td>" in text and ">13.90</td>" in text
    assert len(quality_charts.sensitivity_curve({"curve": curve}).dots) == 99
