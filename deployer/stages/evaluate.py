"""Evaluate: the perplexity of a short text in the engine that will serve the model.

The gate compares it with the 16-bit model's on the same token ids, so that a garbage model can
never become a bundle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployer.engines import Scoring
from deployer.errors import QualityGateError, StageError
from deployer.recipe import Quality
from deployer.stages.context import StageContext, read_text
from deployer.stages.parity import QUESTION

METHODS = {
    "score_llama_cpp": "teacher-forced through the llama.cpp server: BOS, then every token scored",
    "score_vllm": "prompt log-probabilities of vLLM: BOS, then every token scored",
}
"""Worker -> how it measures."""


def run(
    weights: Path,
    scoring: Scoring,
    settings: Mapping[str, Any],
    text: Path,
    title: str,
    context: StageContext,
) -> Mapping[str, Any]:
    """Score `text` with the model `weights`; keeps every token's value.

    `settings` go to the worker with it: `tokens`, how many are scored, and what the engine needs;
    `parity` asks the parity question as well.
    """
    tokens = settings["tokens"]
    request = {"model": str(weights), "text": read_text(text), **settings}
    if settings.get("parity"):
        request |= QUESTION
    context.toolchain(scoring.toolchain)
    with context.progress.step(title) as step:
        scores = context.work(scoring.worker, scoring.toolchain, request, step)
    if scores["tokens"] < tokens:
        raise StageError(
            f"the evaluation text has {scores['tokens']} tokens; the recipe scores {tokens}",
            "Give a longer quality.text, or lower quality.tokens.",
        )
    return {**scores, "method": METHODS.get(scoring.worker, scoring.worker)}


def compare(
    scores: Mapping[str, Any], baseline: Mapping[str, Any] | None, text_name: str
) -> dict[str, Any]:
    """The quality record of a model: perplexity and, with a 16-bit baseline, ratio and top-1.

    `top1_agreement` is the share of positions where both models' likeliest token is the same.
    Raises StageError where the two were not scored on the same token ids.
    """
    quality: dict[str, Any] = {
        "perplexity": {"value": round(float(scores["perplexity"]), 4)},
        "corpus": text_name,
        "window": scores["tokens"],
        "tokens": scores["tokens"],
        "method": scores["method"],
        "ids_sha256": scores["ids_sha256"],
        "engine": scores["engine_version"],
        "sample": scores["sample"],
    }
    if baseline is None:
        return quality
    if baseline["ids_sha256"] != scores["ids_sha256"]:
        raise StageError("the two models tokenize the evaluation text differently")
    same = sum(a == b for a, b in zip(baseline["top1"], scores["top1"], strict=True))
    ratio = math.exp(math.log(scores["perplexity"]) - math.log(baseline["perplexity"]))
    return {
        **quality,
        "baseline_perplexity": round(float(baseline["perplexity"]), 4),
        "perplexity_ratio": {"value": round(ratio, 4)},
        "top1_agreement": round(same / len(scores["top1"]), 4),
    }


def gate(measured: dict[str, Any], limits: Quality) -> None:
    """Raise QualityGateError, with the numbers, unless every limit of the recipe holds."""
    perplexity = measured["perplexity"]["value"]
    ratio = measured.get("perplexity_ratio", {}).get("value")
    missed = []
    if not perplexity <= limits.max_perplexity:
        missed.append(f"perplexity {perplexity:.2f} is over {limits.max_perplexity:g}")
    if ratio is not None and not ratio <= limits.max_perplexity_ratio:
        missed.append(
            f"perplexity is {ratio:.3f} times the 16-bit model's "
            f"({measured['baseline_perplexity']:.2f}), over {limits.max_perplexity_ratio:g}"
        )
    if missed:
        raise QualityGateError(
            f"the model is not good enough, no bundle was made: {'; '.join(missed)}. "
            f"It says: {measured['sample'][:80]!r}",
            "Choose a scheme with more bits, or raise the limit in quality: if that is acceptable.",
            measured=measured,
        )
