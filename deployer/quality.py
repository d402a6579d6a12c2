"""Formulas of quality: what two models' scores of the same tokens say of each other.

Scores are the response of a scoring worker: `nll` (nats), `top1` (ids), `kld` (nats), `cosine`, one
value a scored token, window after window; `window` - 1 values belong to a window.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

BLOCK = 64
"""Tokens of a block of the bootstrap: neighbouring losses depend on each other."""
RESAMPLES = 2000
_SEED = 20261122


def perplexity(nll: Sequence[float]) -> float:
    """exp of the mean loss; a loss that would overflow is cut at e^700."""
    return math.exp(min(math.fsum(nll) / len(nll), 700.0))


def compared(scores: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's scores are, compared with those of its 16-bit `baseline` on the same ids.

    perplexity_ratio (value, low, high: 95 % interval of a paired block bootstrap), kl_divergence
    (mean with its interval, p99, max, tokens), top1_agreement, hidden_cosine (mean, min), and
    per_window. What an engine does not tell is left out.
    """
    blocks = _blocks(len(scores["nll"]), scores["window"] - 1)
    gains = [ours - theirs for ours, theirs in zip(scores["nll"], baseline["nll"], strict=True)]
    ratio, low, high = (math.exp(min(x, 700.0)) for x in interval(gains, blocks))
    same = sum(a == b for a, b in zip(baseline["top1"], scores["top1"], strict=True))
    found: dict[str, Any] = {
        "baseline_perplexity": rounded(perplexity(baseline["nll"])),
        "perplexity_ratio": _figures(value=ratio, low=low, high=high),
        "top1_agreement": rounded(same / len(scores["top1"])),
    }
    if scores.get("kld"):
        found["kl_divergence"] = _divergence(scores["kld"], scores["window"] - 1)
    if scores.get("cosine"):
        cosine = scores["cosine"]
        found["hidden_cosine"] = _figures(mean=math.fsum(cosine) / len(cosine), min=min(cosine))
    return {**found, "per_window": _per_window(scores, baseline)}


def in_words(record: Mapping[str, Any]) -> list[str]:
    """A quality record for people, in a few lines."""
    value = record["perplexity"]["value"]
    over = f"over {record['tokens']:,} tokens of {record['corpus']}"
    if "perplexity_ratio" not in record:
        lines = [f"Quality: perplexity {value:.2f}, {over}"]
    else:
        ratio, agreement = record["perplexity_ratio"], record["top1_agreement"]
        lines = [
            f"Quality: perplexity {value:.2f}, {ratio['value']:.3f} x the 16-bit model's (95 % "
            f"interval {ratio['low']:.3f} to {ratio['high']:.3f}), {over}",
            f"Same first choice as the 16-bit model: {agreement:.1%} of the tokens"
            + _divergence_in_words(record.get("kl_divergence")),
        ]
    return [*lines, f"It says: {record['sample'].strip()[:100]!r}"]


def _divergence_in_words(divergence: Mapping[str, float] | None) -> str:
    if divergence is None:
        return ""
    return f"; KL divergence {divergence['mean']:.4f} nats, 99 % of tokens below " + (
        f"{divergence['p99']:.2f}"
    )


def interval(
    values: Sequence[float], blocks: Sequence[slice], resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """(mean, low, high): the mean of `values` and its 95 % interval, by resampling whole blocks."""
    sums = [(math.fsum(values[block]), len(values[block])) for block in blocks]
    draw = random.Random(_SEED)
    means = []
    for _ in range(resamples):
        drawn = draw.choices(sums, k=len(sums))
        totals, counts = zip(*drawn, strict=True)
        means.append(math.fsum(totals) / sum(counts))
    return math.fsum(values) / len(values), *middle95(means)


def middle95(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of some values: their 2.5th and 97.5th percentile."""
    ordered = sorted(values)
    cut = int(0.025 * len(ordered))
    return ordered[cut], ordered[-1 - cut]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _blocks(count: int, window: int) -> list[slice]:
    """Blocks of neighbours, none across two windows."""
    return [
        slice(start, min(start + BLOCK, first + window, count))
        for first in range(0, count, window)
        for start in range(first, min(first + window, count), BLOCK)
    ]


def _divergence(kld: Sequence[float], window: int) -> dict[str, float]:
    mean, low, high = interval(kld, _blocks(len(kld), window))
    figures = _figures(mean=mean, low=low, high=high, p99=quantile(kld, 0.99), max=max(kld))
    return {**figures, "tokens": len(kld)}


def _per_window(scores: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[dict[str, float]]:
    share = scores["window"] - 1
    kld = scores.get("kld") or []
    rows = []
    for start in range(0, len(scores["nll"]), share):
        window = slice(start, start + share)
        row = _figures(
            perplexity=perplexity(scores["nll"][window]),
            baseline_perplexity=perplexity(baseline["nll"][window]),
        )
        if kld[window]:
            row |= _figures(kl_divergence=math.fsum(kld[window]) / len(kld[window]))
        rows.append(row)
    return rows


def _figures(**values: float) -> dict[str, float]:
    return {name: rounded(value) for name, value in values.items()}


def rounded(value: float) -> float:
    """Six significant digits: more than any of these figures is worth."""
    return float(f"{value:.6g}")
