"""Measure deployer against the bare tools, side by side, in one run: `make bench`.

Not a test: the figures depend on the machine and on what else it does. Contenders take turns, one
at a time, in an order that changes every round; medians are compared. Exit status 0 when all was
measured, whether the targets were met or missed; 1 when something could not be measured.

The result is printed as a table and written to $DEPLOYER_HOME/bench.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import builds
import psutil
import streams
from commands import (
    DEPLOYER,
    TOOLCHAIN_TIMEOUT,
    BenchError,
    bare,
    deployed,
    deployer,
)

from deployer import __version__
from deployer.artifacts import Bundle
from deployer.home import Home, default_home
from deployer.loadtest.host import describe
from deployer.machine import usable_cores

RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2-q4_0.yaml"
TOOLCHAINS = ("llama-cpp", "convert", "llama-cpp-native")
SLOTS, CONTEXT = 8, 2048
REQUESTS = {1: 4, 8: 2, 16: 2}
"""Requests that each stream sends, by number of streams."""
BARE = "bare llama-server"
QUIET, QUIET_TIMEOUT = 0.15, 20.0
"""Others may use this share of the processor; seconds to wait for them before a measurement."""
Serve = Callable[[], AbstractContextManager[str]]


@dataclass(frozen=True)
class Line:
    """One figure against its target; `met` compares with it from below or above.

    `valid` is false where others used the processor, so that the figure says nothing.
    """

    name: str
    bare: float | None
    deployer: float
    figure: float
    unit: str
    target: float
    at_least: bool = False
    valid: bool = True

    @property
    def met(self) -> bool:
        return self.figure >= self.target if self.at_least else self.figure <= self.target

    def row(self) -> tuple[str, ...]:
        sign = ">=" if self.at_least else "<="
        verdict = ("met" if self.met else "MISSED") if self.valid else "not valid: busy"
        alone = "" if self.bare is None else f"{self.bare:.1f}"
        shown = "" if self.bare is None else f"{self.deployer:.1f}"
        return (
            self.name, alone, shown, f"{self.figure:.3f} {self.unit}".strip(),
            f"{sign} {self.target:g}", verdict,
        )  # fmt: skip


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def wait_for_quiet() -> float:
    """Wait a while for the processor to be idle; gives the share of it that was busy last."""
    deadline = time.monotonic() + QUIET_TIMEOUT
    while (busy := psutil.cpu_percent(interval=1.0) / 100) > QUIET and time.monotonic() < deadline:
        pass
    return busy


def measure_help() -> list[float]:
    """Milliseconds of `deployer --help`."""
    taken = []
    for _ in range(builds.HELP_RUNS):
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
    rebuilds = [builds.rebuild(RECIPE, home) for _ in range(builds.REBUILD_RUNS)]
    measured = {"by_hand": hand, "checks": checks, "by_deployer": ours, "rebuild": rebuilds,
                "stages": document["stages"]}  # fmt: skip
    return measured, Path(document["bundle"])


def contenders(bundle: Path, home: Home) -> dict[str, Serve]:
    """Three ways to serve the same file: by hand, and by deployer with either native server."""
    manifest = Bundle.read(bundle).manifest
    weights, model = bundle / manifest.weights, manifest.name
    program = builds.toolchain("llama-cpp-native", home).program("llama-server")
    by_hand = (
        "--model", str(weights), "--alias", model, "--ctx-size", str(SLOTS * CONTEXT),
        "--parallel", str(SLOTS), "--threads", str(usable_cores()), "--jinja", "--no-webui",
    )  # fmt: skip
    settings = (f"serve.parallel={SLOTS}", f"serve.context={CONTEXT}")
    return {
        BARE: lambda: bare(program, by_hand, home.root / "bare-llama-server.log"),
        "source": lambda: deployed(bundle, "source", home.root, settings),
        "xllamacpp": lambda: deployed(bundle, "xllamacpp", home.root, settings),
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


def lines_of(document: dict[str, Any]) -> list[Line]:
    """The figures of a result document, each with its target."""
    median = statistics.median
    rates, made = document["throughput"], document["build"]
    quiet = max(document["busy_before"]) <= QUIET
    lines = []
    for server in (name for name in rates if name != BARE):
        for level in rates[BARE]:
            alone, ours = median(rates[BARE][level]), median(rates[server][level])
            name = f"output tok/s, {level} streams, {server}"
            ratio = ours / alone
            lines.append(Line(name, alone, ours, ratio, "x", 0.97, at_least=True, valid=quiet))
    hand = median(sum(steps.values()) for steps in made["by_hand"])
    checked = hand + median(sum(steps.values()) for steps in made["checks"])
    ours = median(made["by_deployer"])
    return [
        *lines,
        Line("build s, overhead", hand, ours, ours / hand - 1, "", 0.10),
        Line("build s, overhead, checks by hand too", checked, ours, ours / checked - 1, "", 0.10),
        Line("deployer --help", None, 0, median(document["help_ms"]), "ms", 200),
        Line("unchanged rebuild", None, 0, median(made["rebuild"]), "s", 1.0),
    ]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; raises BenchError where something cannot be measured."""
    home = default_home()
    machine = describe().as_json()
    versions = {"deployer": __version__}
    for name in TOOLCHAINS:
        say(f"toolchain {name}")
        made, _ = deployer("toolchain", "install", name, home=home.root, timeout=TOOLCHAIN_TIMEOUT)
        versions |= made["versions"]
    say("deployer --help")
    help_ms = measure_help()
    with builds.cold_home(home) as cold:
        say("builds")
        build, bundle = measure_builds(cold, options.builds)
        say("servers")
        serves, model = contenders(bundle, cold), Bundle.read(bundle).manifest.name
        rates, busy = measure_throughput(
            serves, model, options.streams, options.rounds, options.tokens
        )
    return {
        "host": machine, "versions": versions, "recipe": RECIPE.name,
        "settings": {"rounds": options.rounds, "builds": options.builds, "tokens": options.tokens,
                     "slots": SLOTS, "context": CONTEXT, "threads": usable_cores()},
        "throughput": rates, "busy_before": busy, "build": build, "help_ms": help_ms,
    }  # fmt: skip


def show(document: dict[str, Any], lines: list[Line]) -> None:
    from deployer.console import print_lines, print_table

    columns = ("figure", "bare", "deployer", "deployer : bare", "target", "")
    print_table(columns, [line.row() for line in lines], "deployer against the bare tools")
    host, made = document["host"], document["build"]
    print_lines([
        f"{host['cpu']}, {host['cores']} cores, {host['memory_bytes'] / 1e9:.0f} GB; load before: "
        f"{host['load_before'][0]:.2f}",
        ", ".join(f"{name} {version}" for name, version in document["versions"].items()),
        f"{document['recipe']}: {document['settings']['rounds']} rounds of {SLOTS} slots, "
        f"{document['settings']['tokens']} output tokens a request; {len(made['by_deployer'])} "
        "builds each. Medians; ratios of medians.",
    ])  # fmt: skip
    most = max(document["busy_before"])
    if most > QUIET:
        print_lines(
            [f"Others used up to {most:.0%} of the processor: measure again when it is quiet."]
        )


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of every server (3)")
    parser.add_argument("--builds", type=int, default=2, help="builds each way (2)")
    parser.add_argument("--tokens", type=int, default=64, help="output tokens a request (64)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--json", action="store_true", help="print the document, not the table")
    return parser.parse_args(argv)


def main() -> int:
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # so that servers are stopped
    started = time.monotonic()
    try:
        document = run(options)
    except (BenchError, subprocess.TimeoutExpired) as error:
        say(f"error: {error}")
        return 1
    lines = lines_of(document)
    document["figures"] = [{**dataclasses.asdict(line), "met": line.met} for line in lines]
    document["seconds"] = round(time.monotonic() - started, 1)
    target = default_home().root / "bench.json"
    target.write_text(json.dumps(document, indent=1), encoding="utf-8")
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        show(document, lines)
        print(f"Took {document['seconds']:.0f} s. All of it: {os.path.relpath(target)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
