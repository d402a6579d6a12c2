"""The formulas of quality, on numbers that can be checked by hand."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer import quality


def scores(nll: list[float], window: int = 129, **more: Any) -> dict[str, Any]:
    return {"nll": nll, "top1": [0] * len(nll), "window": window, **more}


def test_perplexity_is_the_exponential_of_the_mean_loss() -> None:
    assert quality.perplexity([math.log(2), math.log(8)]) == pytest.approx(4.0)
    assert quality.perplexity([1e6]) == math.exp(700.0)


def test_a_model_compared_with_itself() -> None:
    nll = [random.Random(1).random() for _ in range(256)]
    found = quality.compared(scores(nll, kld=[0.0] * 256, cosine=[1.0] * 256), scores(nll))
    assert found["perplexity_ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["kl_divergence"] == {
        "mean": 0.0, "low": 0.0, "high": 0.0, "p99": 0.0, "max": 0.0, "tokens": 256,
    }  # fmt: skip
    assert found["top1_agreement"] == 1.0
    assert found["hidden_cosine"] == {"mean": 1.0, "min": 1.0}


def test_the_ratio_is_of_perplexities() -> None:
    ours, theirs = [2.0, 3.0] * 128, [1.5, 3.1] * 128
    found = quality.compared(scores(ours), scores(theirs))
    expected = quality.perplexity(ours) / quality.perplexity(theirs)
    assert found["perplexity_ratio"]["value"] == pytest.approx(expected, rel=1e-5)
    assert found["baseline_perplexity"] == pytest.approx(math.exp(2.3), rel=1e-5)


def test_what_was_not_measured_is_absent() -> None:
    found = quality.compared(scores([1.0] * 4, 5, kld=None, cosine=None), scores([1.0] * 4, 5))
    assert not {"kl_divergence", "hidden_cosine"} & set(found)


def test_each_window_has_its_figures() -> None:
    ours = scores([1.0] * 4 + [2.0] * 4, 5, kld=[0.5] * 4 + [0.25] * 2)
    found = quality.compared(ours, scores([1.0] * 8, 5))["per_window"]
    assert [row["perplexity"] for row in found] == pytest.approx(
        [math.exp(1), math.exp(2)], rel=1e-5
    )
    assert [row["kl_divergence"] for row in found] == [0.5, 0.25]
    beyond = quality.compared({**ours, "kld": [0.5] * 4}, scores([1.0] * 8, 5))["per_window"]
    assert "kl_divergence" not in beyond[1]


def test_blocks_stay_within_a_window() -> None:
    blocks = quality._blocks(200, 100)
    assert [(b.start, b.stop) for b in blocks] == [(0, 64), (64, 100), (100, 164), (164, 200)]


def test_the_interval_covers_the_truth() -> None:
    """Of 200 samples of independent noise around 0.1 some 95 % cover it; 90 % must."""
    draw = random.Random(7)
    covered = 0
    for _ in range(200):
        values = [draw.gauss(0.1, 1.0) for _ in range(640)]
        _, low, high = quality.interval(values, quality._blocks(640, 640), resamples=200)
        covered += low <= 0.1 <= high
    assert 180 <= covered <= 199


def test_neighbours_that_err_together_widen_the_interval() -> None:
    """One shared error a block: the interval must be that of ten values, not of 640."""
    draw = random.Random(3)
    steps = [draw.gauss(0.0, 1.0) for _ in range(10)]
    values = [step for step in steps for _ in range(64)]
    _, low, high = quality.interval(values, quality._blocks(640, 640))
    single = [slice(i, i + 1) for i in range(640)]
    _, near, far = quality.interval(values, single, resamples=200)
    assert high - low > 4 * (far - near)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=300), st.integers(1, 80))
def test_the_interval_holds_the_mean_between_the_extremes(values: list[float], window: int) -> None:
    blocks = quality._blocks(len(values), window)
    mean, low, high = quality.interval(values, blocks, resamples=40)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert min(values) - 1e-9 <= mean <= max(values) + 1e-9


def test_a_quantile_is_one_of_the_values() -> None:
    assert quality.quantile([5.0, 1.0, 3.0], 0.99) == 5.0
    assert quality.quantile(list(range(1, 101)), 0.99) == 99
    assert quality.quantile([2.0], 0.5) == 2.0


def test_in_words() -> None:
    record = {"perplexity": {"value": 11.0}, "tokens": 2044, "corpus": "t.txt", "sample": " Hi "}
    assert quality.in_words(record) == [
        "Quality: perplexity 11.00, over 2,044 tokens of t.txt", "It says: 'Hi'",
    ]  # fmt: skip
    record |= {
        "perplexity_ratio": {"value": 1.1, "low": 1.05, "high": 1.15}, "top1_agreement": 0.9,
        "kl_divergence": {"mean": 0.03125, "p99": 1.5},
    }  # fmt: skip
    first, second, _ = quality.in_words(record)
    assert "1.100 x the 16-bit model's (95 % interval 1.050 to 1.150)" in first
    assert second == (
        "Same first choice as the 16-bit model: 90.0% of the tokens; KL divergence 0.0312 nats, "
        "99 % of tokens below 1.50"
    )
