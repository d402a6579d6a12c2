"""The comparison document: one checkpoint in several formats, measured on one machine in one run.

    comparison.json   the document, schema_version 1
    comparison.csv    one row a format
    report.html       the page; summary.md the table alone
    figures/          PNG pictures of it

Latencies are milliseconds, durations seconds, sizes bytes, rates per second, shares 0 to 1. A
figure that could not be measured is null, never 0; a format that could not be run has a reason and
no figures at all, which the records themselves enforce.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from deployer.artifacts import Record
from deployer.results import Host

SCHEMA_VERSION = 1
COMPARISON, TABLE, REPORT, SUMMARY = (
    "comparison.json", "comparison.csv", "report.html", "summary.md",
)  # fmt: skip
FIGURES = "figures"
SPREAD = tuple(range(0, 101, 5))
"""The percentiles that `Latency.spread` holds."""
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5th percentile of Student's t with 1, 2, … degrees of freedom; behind them 1.960 is used."""


class Estimate(Record):
    """A figure of every trial, in their order; mean, and the 95 % interval of the mean.

    The interval is Student's t; None where there was one trial, which has no spread.
    """

    values: tuple[float, ...]
    mean: float
    low: float | None = None
    high: float | None = None


def estimate(values: Sequence[float | None]) -> Estimate | None:
    """The estimate of one figure a trial; None where one of the trials has none."""
    there = [value for value in values if value is not None]
    if not there or len(there) != len(values):
        return None
    mean = statistics.mean(there)
    if len(there) == 1:
        return Estimate(values=tuple(there), mean=mean)
    half = half_width(there)
    return Estimate(values=tuple(there), mean=mean, low=mean - half, high=mean + half)


def known(values: Sequence[float]) -> Estimate:
    """The estimate of a figure that every trial has; at least one."""
    found = estimate(values)
    assert found is not None
    return found


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of at least two values: t x sd / sqrt(n)."""
    freedom = len(values) - 1
    t = _T95[freedom - 1] if freedom <= len(_T95) else 1.960
    return t * statistics.stdev(values) / math.sqrt(len(values))


class Latency(Record):
    """One latency: percentiles of each trial, and the percentiles SPREAD of all requests."""

    p50: Estimate
    p95: Estimate
    spread: tuple[float, ...]


class Level(Record):
    """What a level of load measured: `users` concurrent streams in a closed loop.

    `prefill` is prompt tokens / TTFT and belongs to one user, who waits for nobody; `decode` is
    1 / TPOT of one stream, `output` all streams' tokens, all three tokens per second. `goodput` is
    the share of requests within every objective. `problems` say why a trial cannot be trusted.
    """

    users: int
    requests: int
    failed: int
    prefill: Estimate | None
    decode: Estimate | None
    output: Estimate | None
    requests_per_s: Estimate
    ttft: Latency | None
    tpot: Latency | None
    e2e: Latency | None
    goodput: Estimate | None
    runs: tuple[str, ...]
    problems: tuple[str, ...] = ()


class Serving(Record):
    """What serving a format took. `load_seconds`: from the start to the first token.

    `energy_j_per_token` is of the loaded level's output tokens; `energy_source` says what counted
    it ("RAPL package", "NVML").
    """

    server: str
    version: str
    context: int
    parallel: int
    load_seconds: Estimate
    peak_rss_bytes: Estimate | None
    peak_gpu_bytes: Estimate | None
    single: Level
    loaded: Level
    energy_j_per_token: Estimate | None
    energy_source: str | None
    sample: str


class Size(Record):
    """`ratio_to_fp32` is 32 / bits_per_weight: how many times smaller the weights are.

    `weights_bytes` and `bits_per_weight` are of the weights on disk, or in memory where the engine
    quantizes while it loads (the bundle has 16 bits then). `parameters` is their number, about.
    """

    weights_bytes: int
    bundle_bytes: int
    parameters: int
    bits_per_weight: float
    ratio_to_fp32: float
    ratio_to_fp16: float


class TaskScore(Record):
    """A task asked through the served endpoint; `recovery` is value / the baseline's value."""

    task: str
    metric: str
    items: int
    value: float
    low: float
    high: float
    recovery: float | None = None
    recovery_low: float | None = None
    recovery_high: float | None = None


Status = Literal["measured", "refused", "unavailable", "failed"]


class Row(Record):
    """One format. measured: all of it. refused: it missed its quality gate, and was never served.

    unavailable: it cannot run on this machine. failed: building or serving it broke. All but
    `measured` have a `reason`, and no figure that was not measured: `quality` where the gate was
    missed, nothing else. `quality` is the record of the bundle's manifest (docs/quality.md).
    """

    name: str
    engine: str
    method: str
    scheme: str
    status: Status
    reason: str | None = None
    hint: str | None = None
    bundle: str | None = None
    digest: str | None = None
    size: Size | None = None
    quality: dict[str, Any] | None = None
    tasks: tuple[TaskScore, ...] = ()
    serving: Serving | None = None
    tools: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _no_figure_without_a_measurement(self) -> Row:
        if (self.status == "measured") == (self.reason is not None):
            raise ValueError("a format is measured, or there is a reason why not")
        wanted = {"measured": ("size", "quality", "serving"), "refused": ("quality",)}
        for field in ("size", "quality", "serving"):
            there = getattr(self, field) is not None
            if there != (field in wanted.get(self.status, ())):
                raise ValueError(f"a format that is {self.status} has {'no ' * there}{field}")
        if self.tasks and self.status != "measured":
            raise ValueError(f"a format that is {self.status} has no tasks")
        return self


class Workload(Record):
    """What every format was asked; the same seed, so the same prompts in the same order."""

    users: int
    duration_s: int
    warmup_s: int
    prompt_tokens: int
    output_tokens: int
    temperature: float
    seed: int
    slo: dict[str, float | None]
    tasks: tuple[str, ...] = ()
    task_limit: int | None = None


class Trial(Record):
    """One turn of one format. `busy`: the share of all processors others used before or in it.

    A trial is `contended` where that was more than a tenth.
    """

    format: str
    number: int
    started: str
    busy: float
    contended: bool


class Comparison(Record):
    """`comparison.json`."""

    schema_version: int = SCHEMA_VERSION
    id: str
    name: str
    started: str
    finished: str
    seconds: float
    command: str
    git: str | None
    source: dict[str, Any]
    host: Host
    versions: dict[str, str]
    workload: Workload
    trials: tuple[Trial, ...]
    rows: tuple[Row, ...]

    @property
    def measured(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.status == "measured")

    def row(self, name: str) -> Row:
        """The row of a format; raises KeyError where there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)


def read_comparison(path: Path) -> Comparison:
    """Read a stored comparison, a folder or its document; raises OSError or ValueError."""
    document = path / COMPARISON if path.is_dir() else path
    return Comparison.model_validate_json(document.read_text("utf-8"))
