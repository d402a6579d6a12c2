"""Stored results -> the figures that are judged, each with its interval and its spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployer.comparison import Estimate, Level, Row, Serving
from deployer.results import LoadTestResult, Stage, Trials


@dataclass(frozen=True)
class Figure:
    """A figure's name and unit; `floor` is the smallest difference that matters, in its unit."""

    name: str
    unit: str
    larger_is_better: bool = False
    floor: float = 0.0


@dataclass(frozen=True)
class Measured:
    """A figure of one result: mean, 95 % interval and coefficient of variation over the trials.

    `interval` is None where there was one trial. `basis` is what it was measured on: figures of
    two bases are not compared. `doubt` is why it cannot be trusted, "" where it can.
    """

    mean: float
    interval: tuple[float, float] | None = None
    cv: float = 0.0
    basis: str = ""
    doubt: str = ""


Figures = dict[Figure, Measured]

LOAD = Figure("load time", "s")
HOST_MEMORY = Figure("peak memory", "bytes")
GPU_MEMORY = Figure("peak GPU memory", "bytes")
PREFILL = Figure("prefill", "tok/s", larger_is_better=True)
DECODE = Figure("decode", "tok/s", larger_is_better=True)
OUTPUT = Figure("output", "tok/s", larger_is_better=True)
GOODPUT = Figure("goodput", "share", larger_is_better=True)
SIZE = Figure("weights", "bytes")
PERPLEXITY = Figure("perplexity ratio", "")
DIVERGENCE = Figure("KL divergence", "nats", floor=0.001)
"""Of 16-bit weights it is rounding noise near 0, where any two figures differ by many per cent."""
LATENCIES = tuple(
    (latency, percentile, Figure(f"{latency.upper()} {percentile}", "ms"))
    for latency in ("ttft", "tpot", "e2e")
    for percentile in ("p50", "p95")
)


def of_row(row: Row) -> Figures:
    """What was measured of a format, in the order in which it is told."""
    found = _of_quality(row.quality or {})
    for score in row.tasks:
        figure = Figure(f"{score.task} {score.metric}", "", larger_is_better=True)
        interval = (score.low, score.high)
        found[figure] = Measured(score.value, interval, basis=f"{score.items} items")
    if row.size:
        exact = float(row.size.weights_bytes)
        found[SIZE] = Measured(exact, (exact, exact))
    return found | (_of_serving(row.serving) if row.serving else {})


def _of_quality(record: Mapping[str, Any]) -> Figures:
    """Of a quality record (docs/quality.md); its intervals are of the text, not of trials."""
    basis = f"{record.get('ids_sha256')} in windows of {record.get('window')}"
    found = {}
    for figure, name, key in (
        (PERPLEXITY, "perplexity_ratio", "value"),
        (DIVERGENCE, "kl_divergence", "mean"),
    ):
        value = record.get(name)
        if value:
            interval = (value["low"], value["high"]) if "low" in value else None
            found[figure] = Measured(value[key], interval, basis=basis)
    return found


def _of_serving(serving: Serving) -> Figures:
    """Prefill and decode are one user's; latencies, output and goodput of the loaded level."""
    single, loaded = serving.single, serving.loaded
    found = {
        LOAD: _estimated(serving.load_seconds),
        HOST_MEMORY: _estimated(serving.peak_rss_bytes),
        GPU_MEMORY: _estimated(serving.peak_gpu_bytes),
        PREFILL: _estimated(single.prefill, single),
        DECODE: _estimated(single.decode, single),
    }
    for name, percentile, figure in LATENCIES:
        latency = getattr(loaded, name)
        found[figure] = _estimated(latency and getattr(latency, percentile), loaded)
    found[OUTPUT] = _estimated(loaded.output, loaded)
    found[GOODPUT] = _estimated(loaded.goodput, loaded)
    return {figure: value for figure, value in found.items() if value is not None}


def _estimated(value: Estimate | None, level: Level | None = None) -> Measured | None:
    if value is None:
        return None
    interval = None
    if value.low is not None and value.high is not None:
        interval = (value.low, value.high)
    doubt = "; ".join(level.problems) if level else ""
    return Measured(value.mean, interval, _variation(value.values), doubt=doubt)


def _variation(values: Sequence[float]) -> float:
    """Standard deviation / mean; 0 of one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2 or mean == 0:
        return 0.0
    squares = math.fsum((value - mean) ** 2 for value in values)
    return math.sqrt(squares / (len(values) - 1)) / abs(mean)


def of_load_test(result: LoadTestResult) -> dict[str, Figures]:
    """Stage -> its figures; those of a stage that was repeated have intervals."""
    doubt = "" if result.client.valid else "; ".join(result.client.problems)
    return {stage.name: _of_stage(stage, doubt) for stage in result.stages}


def _of_stage(stage: Stage, doubt: str) -> Figures:
    found = {
        figure: (
            getattr(getattr(stage.latency_ms, name), percentile),
            stage.trials.get(f"{name}_{percentile}_ms"),
        )
        for name, percentile, figure in LATENCIES
    }
    found[OUTPUT] = (stage.throughput.output_tokens_per_s, stage.trials.get("output_tokens_per_s"))
    found[GOODPUT] = (stage.goodput.share, stage.trials.get("goodput"))
    return {
        figure: _repeated(value, trials, doubt)
        for figure, (value, trials) in found.items()
        if value is not None
    }


def _repeated(value: float, trials: Trials | None, doubt: str) -> Measured:
    """A figure by its trials, where there were several; else as it is, without an interval."""
    if trials is None or trials.mean is None:
        return Measured(value, doubt=doubt)
    return Measured(trials.mean, trials.ci95, trials.cv or 0.0, doubt=doubt)
