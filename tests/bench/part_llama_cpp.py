"""llama.cpp: builds and servers of the demo recipe against its tools alone; and start-up times."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import builds
import streams
from commands import DEPLOYER, BenchError, bare, deployed
from figures import QUIET, Line, rate_lines, say, wait_for_quiet

from deployer.artifacts import Bundle
from deployer.home import Home
from deployer.machine import usable_cores

RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2-q4_0.yaml"
TOOLCHAINS = ("llama-cpp", "convert", "llama-cpp-native")
SLOTS, CONTEXT = 8, 2048
REQUESTS = {1: 4, 8: 2, 16: 1}
"""Requests that each stream sends, by number of streams."""
BARE = "bare llama-server"
HELP_RUNS, REBUILD_RUNS = 10, 5
Serve = Callable[[], AbstractContextManager[str]]


def measure(home: Home, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of this part; raises BenchError where something cannot be measured."""
    say("deployer --help")
    help_ms = measure_help()
    say("builds")
    build, bundle = measure_builds(home, options.builds)
    say("servers")
    serves, model = contenders(bundle, home), Bundle.read(bundle).manifest.name
    rates, busy = measure_throughput(serves, model, options.streams, options.rounds, options.tokens)
    return {
        "recipe": RECIPE.name,
        "settings": {"rounds": options.rounds, "builds": options.builds, "tokens": options.tokens,
                     "slots": SLOTS, "context": CONTEXT, "threads": usable_cores()},
        "throughput": rates, "busy_before": busy, "build": build, "help_ms": help_ms,
    }  # fmt: skip


def lines(document: Mapping[str, Any]) -> list[Line]:
    """The figures of this part's result, each with its target."""
    median = statistics.median
    made = document["build"]
    quiet = max(document["busy_before"]) <= QUIET
    hand = median(sum(steps.values()) for steps in made["by_hand"])
    checked = hand + median(sum(steps.values()) for steps in made["checks"])
    ours = median(made["by_deployer"])
    return [
        *rate_lines(document["throughput"], BARE, quiet),
        Line("build s, overhead", hand, ours, ours / hand - 1, "", 0.10),
        Line("build s, overhead, checks by hand too", checked, ours, ours / checked - 1, "", 0.10),
        Line("deployer --help", None, 0, median(document["help_ms"]), "ms", 200),
        Line("unchanged rebuild", None, 0, median(made["rebuild"]), "s", 1.0),
    ]


def notes(document: Mapping[str, Any]) -> list[str]:
    """What was run, in words."""
    settings, made = document["settings"], document["build"]
    return [
        f"{document['recipe']}: {settings['rounds']} rounds of {settings['slots']} slots, "
        f"{settings['tokens']} output tokens a request; {len(made['by_deployer'])} builds each."
    ]


def measure_help() -> list[float]:
    """Milliseconds of `deployer --help`."""
    taken = []
    for _ in range(HELP_RUNS):
        started = time.monotonic()
        subprocess.run([DEPLOYER, "--help"], check=True, capture_output=True, timeout=30)
        taken.append((time.monotonic() - started) * 1000)
    return taken


def measure_builds(home: Home, rounds: int) -> tuple[dict[str, Any], Path]:
    """Seconds of builds by hand and by deployer, in turns; and the bundle of the last one."""
    hand, checks, ours = [], [], []
    document: dict[str, Any] = {}
    for number in range(rounds):
        for who in ("hand", "deployer") if number % 2 == 0 else ("deployer", "hand"):
            if who == "hand":
                steps, extra = builds.by_hand(RECIPE, home, with_checks=not checks)
                hand.append(steps)
                checks += [extra] if extra else []
            else:
                document, seconds = builds.by_deployer(RECIPE, home)
                ours.append(seconds)
            say(f"  build {number + 1}/{rounds} by {who}: "
                f"{sum(hand[-1].values()) if who == 'hand' else ours[-1]:.1f} s")  # fmt: skip
    say("  rebuild of what is unchanged")
    rebuilds = [builds.rebuild(RECIPE, home) for _ in range(REBUILD_RUNS)]
    measured = {"by_hand": hand, "checks": checks, "by_deployer": ours, "rebuild": rebuilds,
                "stages": document["stages"]}  # fmt: skip
    return measured, Path(document["bundle"])


def contenders(bundle: Path, home: Home) -> dict[str, Serve]:
    """Three ways to serve the same file: by hand, and by deployer with either native server."""
    manifest = Bundle.read(bundle).manifest
    weights, model = bundle / manifest.weights, manifest.name
    program = builds.toolchain("llama-cpp-native", home).program("llama-server")
    by_hand = (
        str(program), "--model", str(weights), "--alias", model,
        "--ctx-size", str(SLOTS * CONTEXT), "--parallel", str(SLOTS),
        "--threads", str(usable_cores()), "--jinja", "--no-webui",
    )  # fmt: skip
    settings = (f"serve.parallel={SLOTS}", f"serve.context={CONTEXT}")

    def by_deployer(server: str) -> AbstractContextManager[str]:
        return deployed(bundle, f"bench-{server}", home, (f"serve.server={server}", *settings))

    return {
        BARE: lambda: bare(by_hand, log=home.root / "bare-llama-server.log"),
        "source": lambda: by_deployer("source"),
        "xllamacpp": lambda: by_deployer("xllamacpp"),
    }


def measure_throughput(
    serves: dict[str, Serve], model: str, levels: list[int], rounds: int, tokens: int
) -> tuple[dict[str, dict[int, list[float]]], list[float]]:
    """Output tokens per second of each contender at each number of streams, once a round.

    And the share of the processor that others used before each turn.
    """
    busy: list[float] = []
    names = list(serves)
    rates: dict[str, dict[int, list[float]]] = {n: {k: [] for k in levels} for n in names}
    for number in range(rounds):
        turn = names[number % len(names) :] + names[: number % len(names)]
        for name in turn if number % 2 == 0 else reversed(turn):
            with serves[name]() as endpoint:
                streams.measure(endpoint, model, SLOTS, 1, 8)  # warm-up: touch every slot
                busy.append(wait_for_quiet())
                for level in levels:
                    count = REQUESTS.get(level, 2)
                    outcome = streams.measure(endpoint, model, level, count, tokens)
                    if outcome.problems:
                        raise BenchError(f"{name} at {level} streams: {outcome.problems[0]}")
                    rates[name][level].append(outcome.tokens_per_second)
            shown = ", ".join(f"{k}: {rates[name][k][-1]:.1f}" for k in levels)
            say(f"  round {number + 1}/{rounds} {name}: output tok/s at streams {shown}")
    return rates, busy
