"""The gateway: what it costs in front of a real llama.cpp server, and how many streams it bears.

Direct and through the gateway take turns in one run, against the same server. The thousand streams
come from a made-up engine, since no model makes so many at once on a small machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gateway_load
import streams
from commands import BenchError, deployed, deployer
from figures import QUIET, Line, say, wait_for_quiet
from gateway_engine import MODEL

from deployer.artifacts import Bundle
from deployer.home import Home
from deployer.machine import usable_cores

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what tests share

from gateway_process import Running, running_gateway, table, upstream

RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2-q4_0.yaml"
TOOLCHAINS = ("llama-cpp", "convert")
LENIENT = ("quality.window=64", "quality.windows=1", "quality.max_perplexity=10000",
           "quality.max_perplexity_ratio=100")  # fmt: skip
"""Scoring the model is not what is measured here."""
SLOTS, CONTEXT = 8, 1024
USERS = (4, 8)
REQUESTS = 2
"""Requests of each user in a turn."""
PAIRS, FAKE_PAIRS = 60, 300
MANY = {"streams": 1000, "events": 60, "rate": 3}
ROUTE = "chat"
"""The one that the table of tests has."""


def measure(home: Home, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of this part; raises BenchError where something cannot be measured."""
    say("bundle of the demo model")
    changes = [word for setting in LENIENT for word in ("--set", setting)]
    bundle = Path(str(deployer("build", str(RECIPE), *changes, home=home.root)[0]["bundle"]))
    real, busy = measure_real(bundle, home, options)
    return {
        "recipe": RECIPE.name,
        "settings": {"turns": 2 * options.turns, "tokens": options.tokens, "slots": SLOTS,
                     "context": CONTEXT, "pairs": PAIRS, "fake_pairs": FAKE_PAIRS,
                     "threads": usable_cores(), "many": MANY},
        "real": real, "fake": measure_fake(home), "busy_before": busy,
    }  # fmt: skip


@contextmanager
def in_front_of(url: str, model: str, slots: int, folder: Path) -> Iterator[Running]:
    behind = [upstream("engine", url, model=model, slots=slots, context=CONTEXT)]
    with running_gateway(folder, table(behind, max_waiting=4096)) as running:
        yield running


def measure_real(
    bundle: Path, home: Home, options: argparse.Namespace
) -> tuple[dict[str, Any], list[float]]:
    """Time to first token and tokens per second, direct and through the gateway, in turns."""
    model = Bundle.read(bundle).manifest.name
    settings = (f"serve.parallel={SLOTS}", f"serve.context={CONTEXT}", "serve.server=xllamacpp")
    with (
        deployed(bundle, "bench-gateway", home, settings) as direct,
        in_front_of(direct, model, SLOTS, home.root / "gateway-real") as front,
    ):
        ways = {"direct": (direct, model), "gateway": (front.url, ROUTE)}
        for endpoint, name in ways.values():
            streams.measure(endpoint, name, SLOTS, 1, 8)  # warm-up: touch every slot
        busy = [wait_for_quiet()]
        say("  time to first token")
        asked = [(endpoint, short_chat(endpoint, name)) for endpoint, name in ways.values()]
        ttft = dict(zip(ways, gateway_load.in_turns(asked, PAIRS), strict=True))
        rates: dict[str, dict[int, list[float]]] = {way: {n: [] for n in USERS} for way in ways}
        for turn in range(2 * options.turns):
            busy.append(wait_for_quiet())
            for way in ways if turn % 2 == 0 else reversed(ways):
                take_turn(*ways[way], options.tokens, rates[way])
            shown = ", ".join(f"{way} {n}: {rates[way][n][-1]:.1f}" for way in ways for n in USERS)
            say(f"  turn {turn + 1}: output tok/s at users: {shown}")
    return {"ttft_s": ttft, "throughput": rates}, busy


def take_turn(endpoint: str, model: str, tokens: int, rates: dict[int, list[float]]) -> None:
    for users in USERS:
        outcome = streams.measure(endpoint, model, users, REQUESTS, tokens)
        if outcome.problems:
            raise BenchError(f"{model} at {users} users: {outcome.problems[0]}")
        rates[users].append(outcome.tokens_per_second)


def short_chat(endpoint: str, model: str) -> bytes:
    """Four tokens, from a prompt that is computed anew each time: what differs is the way."""
    return gateway_load.post(endpoint, {
        "model": model, "stream": True, "max_tokens": 4, "ignore_eos": True, "temperature": 0,
        "cache_prompt": False,
        "messages": [{"role": "user", "content": "Say yes."}],
    })  # fmt: skip


def measure_fake(home: Home) -> dict[str, Any]:
    """A thousand streams at once, and times to first token that no model's work hides."""
    with (
        gateway_load.engine(home.root / "engine.log") as direct,
        in_front_of(direct, MODEL, MANY["streams"], home.root / "gateway-fake") as front,
    ):
        wait_for_quiet()
        say("  time to first token of a made-up engine")
        two = ((direct, MODEL), (front.url, ROUTE))
        asked = [(url, gateway_load.request(url, name, 2, 1000)) for url, name in two]
        alone, through = gateway_load.in_turns(asked, FAKE_PAIRS)
        say("  1,000 streams, direct")
        bare = gateway_load.at_once(direct, MODEL, **MANY)
        say("  1,000 streams, through the gateway")
        with gateway_load.watched(front.child.pid) as used:
            ours = gateway_load.at_once(front.url, ROUTE, **MANY)
    return {
        "ttft_ms": {"direct": _spread(alone), "gateway": _spread(through)},
        "many": {"direct": _summary(bare), "gateway": _summary(ours)},
        "used": asdict(used[0]),
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    return {
        "p50": 1000 * statistics.median(seconds),
        "p99": 1000 * gateway_load.percentile(seconds, 99),
    }


def _summary(found: list[gateway_load.Stream]) -> dict[str, Any]:
    """Streams that ended as they should with every token, and the delays of their tokens."""
    delays = [delay for stream in found for delay in stream.delays]
    if not delays:
        raise BenchError(f"no token came; statuses {sorted({s.status for s in found})}")
    whole = sum(stream.whole and len(stream.delays) == MANY["events"] for stream in found)
    return {"whole": whole, "tokens": len(delays), "delay_ms": _spread(delays)}


def lines(document: Mapping[str, Any]) -> list[Line]:
    """The figures of this part's result, each with its target."""
    quiet = max(document["busy_before"]) <= QUIET
    real, fake = document["real"], document["fake"]
    first = {way: 1000 * statistics.median(found) for way, found in real["ttft_s"].items()}
    found = [
        Line("time to first token, p50 ms, added", first["direct"], first["gateway"],
             first["gateway"] - first["direct"], "ms", 3.0, valid=quiet),
        Line("the same, made-up engine", fake["ttft_ms"]["direct"]["p50"],
             fake["ttft_ms"]["gateway"]["p50"],
             fake["ttft_ms"]["gateway"]["p50"] - fake["ttft_ms"]["direct"]["p50"], "ms", 3.0,
             valid=quiet),
    ]  # fmt: skip
    rates = real["throughput"]
    for users in rates["direct"]:
        alone, ours = (statistics.median(rates[way][users]) for way in ("direct", "gateway"))
        found.append(
            Line(f"output tok/s, {users} users", alone, ours, ours / alone, "x", 0.98,
                 at_least=True, valid=quiet)
        )  # fmt: skip
    many = fake["many"]
    whole = {way: many[way]["whole"] for way in ("direct", "gateway")}
    found.append(
        Line("open streams that all end whole", whole["direct"], whole["gateway"],
             whole["gateway"], "", MANY["streams"], at_least=True, valid=quiet)
    )  # fmt: skip
    return found


def notes(document: Mapping[str, Any]) -> list[str]:
    """What was run and what the gateway took, in words."""
    settings, fake = document["settings"], document["fake"]
    used, many = fake["used"], fake["many"]
    late = {way: many[way]["delay_ms"] for way in ("direct", "gateway")}
    tokens = many["gateway"]["tokens"]
    return [
        f"{document['recipe']}: {settings['slots']} slots, {settings['tokens']} output tokens a "
        f"request, {settings['turns']} turns; {settings['pairs']} pairs of requests for the time "
        f"to first token.",
        f"{MANY['streams']:,} streams of {MANY['rate']} tokens a second: the gateway used "
        f"{used['cpu_seconds'] / used['wall_seconds']:.2f} cores and "
        f"{used['memory_bytes'] / 2**20:.0f} MiB, {1e6 * used['cpu_seconds'] / tokens:.0f} us a "
        f"token; delay of a token p50 {late['gateway']['p50']:.1f} and p99 "
        f"{late['gateway']['p99']:.1f} ms (direct {late['direct']['p50']:.1f} and "
        f"{late['direct']['p99']:.1f}).",
    ]
