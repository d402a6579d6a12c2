"""Evaluate: score a text in the engine that will serve the model, and compare with the 16-bit one.

The gate looks at the comparison, so that a garbage model can never become a bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployer.engines import Scoring
from deployer.errors import QualityGateError, StageError
from deployer.quality import compared, perplexity, rounded
from deployer.recipe import Quality
from deployer.stages.context import StageContext, read_text
from deployer.stages.parity import QUESTION

REFERENCE = "reference"
"""Folder of a scored 16-bit model's distributions in its artifact."""
METHODS = {
    "score_llama_cpp": "llama.cpp library, logits at every position",
    "score_vllm": "vLLM, prompt logits",
    "score_transformers": "transformers, logits at every position",
}
"""Worker -> how it measures."""


def run(
    weights: Path,
    scoring: Scoring,
    settings: Mapping[str, Any],
    text: Path,
    title: str,
    context: StageContext,
    folder: Path,
    reference: Path | None = None,
) -> Mapping[str, Any]:
    """Score `text` with the model `weights`; every token's values are in the result.

    `settings` go to the worker with it: `window` and `windows`, and what the engine needs; `parity`
    asks the parity question as well, `keep` leaves the distributions in `folder`. `reference` is
    the artifact folder of a model that was scored with `keep`.
    """
    request = {"model": str(weights), "text": read_text(text), **settings}
    if settings.get("parity"):
        request |= QUESTION
    if settings.get("keep"):
        request["keep"] = str(folder / REFERENCE)
    if reference and (reference / REFERENCE).is_dir():
        request["reference"] = str(reference / REFERENCE)
    context.toolchain(scoring.toolchain)
    with context.progress.step(title) as step:
        scores = context.work(scoring.worker, scoring.toolchain, request, step)
    return {**scores, "method": METHODS.get(scoring.worker, scoring.worker)}


def compare(
    scores: Mapping[str, Any], baseline: Mapping[str, Any] | None, corpus: Mapping[str, str]
) -> dict[str, Any]:
    """The quality record of a model; with a 16-bit baseline, what `quality.compared` tells.

    `corpus` says which text was scored: `corpus`, `corpus_sha256`, of a data set `corpus_revision`.
    `memory` is what the weights took in the engine, where it tells that.
    Raises StageError where the two were not scored on the same token ids.
    """
    record: dict[str, Any] = {
        "perplexity": {"value": rounded(perplexity(scores["nll"]))},
        **corpus,
        **{name: scores[name] for name in ("window", "windows", "tokens", "bos", "ids_sha256")},
        "method": scores["method"],
        "engine": scores["engine_version"],
        "sample": scores["sample"],
        **({"memory": scores["memory"]} if "memory" in scores else {}),
    }
    if baseline is None:
        return record
    if baseline["ids_sha256"] != scores["ids_sha256"]:
        raise StageError(
            "the two models tokenize the evaluation text differently",
            "The tokenizer was damaged or exchanged; build the model again from its source.",
        )
    return {**record, **compared(scores, baseline)}


def missed(measured: Mapping[str, Any], limits: Quality) -> list[str]:
    """Each limit that a quality record misses, in words; [] where all hold."""
    ratio = measured.get("perplexity_ratio", {}).get("value")
    divergence = measured.get("kl_divergence", {}).get("mean")
    agreement = measured.get("top1_agreement")
    value = measured["perplexity"]["value"]
    found = []
    if not value <= limits.max_perplexity:
        found.append(f"perplexity {value:.2f} is over {limits.max_perplexity:g}")
    if ratio is not None and not ratio <= limits.max_perplexity_ratio:
        found.append(
            f"perplexity is {ratio:.3f} times the 16-bit model's "
            f"({measured['baseline_perplexity']:.2f}), over {limits.max_perplexity_ratio:g}"
        )
    if divergence is not None and not divergence <= limits.max_kl_divergence:
        found.append(f"mean KL divergence {divergence:.3f} is over {limits.max_kl_divergence:g}")
    if agreement is not None and not agreement >= limits.min_top1_agreement:
        found.append(f"top-1 agreement {agreement:.1%} is under {limits.min_top1_agreement:.0%}")
    return found


def gate(measured: dict[str, Any], limits: Quality) -> None:
    """Raise QualityGateError, with the numbers, unless every limit of the recipe holds."""
    reasons = missed(measured, limits)
    if reasons:
        raise QualityGateError(
            f"the model is not good enough, no bundle was made: {'; '.join(reasons)}. "
            f"It says: {measured['sample'][:80]!r}",
            "Choose a scheme with more bits, or raise the limit in quality: if that is acceptable.",
            measured=measured,
        )
