"""Measured levels -> the result document. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deployer.loadtest import judging, measure, sweep, validity
from deployer.loadtest.levels import Level
from deployer.loadtest.measure import Part
from deployer.loadtest.preparing import TEMPERATURE, Prepared
from deployer.metrics import MEASURED, Sample
from deployer.recipe import LoadTest
from deployer.results import Host, LoadTestResult, Run, Stage, Trials, Workload


@dataclass
class Loads:
    """The levels of a run and the trials of each, in the order in which they were measured."""

    levels: list[Level] = field(default_factory=list)
    parts: list[list[Part]] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    origin: float | None = None

    @property
    def samples(self) -> list[Sample]:
        return [s for trials in self.parts for part in trials for s in part.samples]


def result(
    workload: LoadTest,
    prepared: Prepared,
    loads: Loads,
    run_record: Run,
    server: Mapping[str, Any],
    machine: Host,
    server_tokens: int | None,
) -> LoadTestResult:
    """The document; `server_tokens` is what the server's own count grew by during the load."""
    samples, stages = loads.samples, tuple(loads.stages)
    knee = sweep.knee(stages) if workload.profile == "sweep" else None
    main = stages[knee or 0]
    # A sweep goes beyond what the server can do: its objectives are those of the knee.
    judged = (main,) if workload.profile == "sweep" else stages
    alone = Trials(mean=main.throughput.output_tokens_per_s)
    return LoadTestResult(
        run=run_record,
        server=dict(server),
        host=machine,
        workload=_workload_record(workload, loads.levels[0], prepared.source, samples),
        stages=stages,
        trials=main.trials.get("output_tokens_per_s", alone),
        gates=judging.gates(workload, judged),
        client=validity.client(stages, loads.parts, server_tokens),
        flags=validity.flags(samples, stages, machine, workload.profile, workload.warmup),
        answers=measure.answers(samples),
        knee=knee,
    )


def _workload_record(
    workload: LoadTest, level: Level, source: str | None, samples: Sequence[Sample]
) -> Workload:
    ok = [s for s in samples if s.ok and s.phase == MEASURED]
    amount = {"requests": level.requests} if level.requests else {"duration_s": level.duration}
    much = {"rate": level.rate} if level.loop == "open" else {"users": level.users}
    return Workload(
        profile=workload.profile,
        loop=level.loop,
        target={**much, **amount, **_of_profile(workload)},
        warmup="1 request" if level.requests else f"{level.warmup} s",
        prompt_tokens=workload.prompt_tokens,
        output_tokens=workload.output_tokens,
        input=measure.summary([s.prompt_tokens for s in ok]),
        output=measure.summary([s.output_tokens for s in ok]),
        ignore_eos=workload.ignore_eos,
        cache_mode="nonce" if workload.cache == "cold" else "warm",
        temperature=TEMPERATURE,
        slo=workload.slo.model_dump(),
        lengths=_lengths(workload),
        source=source,
        trials=workload.trials,
    )


def _of_profile(workload: LoadTest) -> dict[str, float]:
    if workload.profile == "chat":
        return {"turns": workload.turns, "think_s": workload.think}
    return {"prefix_tokens": workload.prefix_tokens} if workload.profile == "prefix" else {}


def _lengths(workload: LoadTest) -> str:
    """Where the lengths of prompts and answers come from."""
    if workload.profile == "replay":
        return "trace"
    if workload.chats and workload.profile not in ("chat", "prefix"):
        return "chats"
    spread = (workload.prompt_tokens_sd, workload.output_tokens_sd)
    return f"normal, sd {spread[0]} in and {spread[1]} out" if any(spread) else "fixed"
