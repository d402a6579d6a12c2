"""The result document of a load test: frozen records, and its files in one folder.

    result.json      the document, schema_version 1
    requests.jsonl   every request with its raw times (metrics.Sample), seconds from the start
    requests.csv     one row a request
    report.html      the page; summary.md the short form
    locust.log       what Locust said

Latencies are milliseconds, durations seconds, rates per second, shares 0 to 1. A figure that
could not be measured is null, never 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from deployer.artifacts import Record
from deployer.metrics import Sample

SCHEMA_VERSION = 1
ERROR_RATE = "error_rate"
"""The name of the gate on failed requests."""
RESULT, REQUESTS, CSV = "result.json", "requests.jsonl", "requests.csv"
REPORT, SUMMARY, LOG = "report.html", "summary.md", "locust.log"


class Summary(Record):
    """n, mean and percentiles of some values; p99 is null where n < 100."""

    n: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None


class Run(Record):
    """Which run this is. Times are ISO 8601 in UTC; `git` is the commit of a source checkout."""

    id: str
    started: str
    finished: str
    seed: int
    git: str | None = None
    versions: dict[str, str]


class Host(Record):
    """The machine the load came from, which is the server's too when the endpoint is local."""

    cpu: str
    cores: int
    threads: int
    memory_bytes: int
    gpus: tuple[str, ...] = ()
    system: str
    load_before: tuple[float, float, float]


class Workload(Record):
    """What was asked of the server."""

    profile: str
    loop: str
    target: dict[str, float]
    warmup: str
    prompt_tokens: int
    output_tokens: int
    input: Summary
    output: Summary
    ignore_eos: bool
    cache_mode: str
    temperature: float
    slo: dict[str, float | None]


class Requests(Record):
    """Counts of measured requests: `sent` = ok + failed + cutoff. `warmup` ones are beside it."""

    sent: int
    ok: int
    failed: int
    cutoff: int
    warmup: int
    errors: dict[str, int]
    error_rate: float | None


class Tokens(Record):
    """Tokens of the ok requests; `cached` are the input tokens a prefix cache saved."""

    input: int | None
    cached: int | None
    output: int | None
    source: str


class Throughput(Record):
    """What arrived during the measured seconds, per second."""

    requests_per_s: float
    output_tokens_per_s: float | None


class Latency(Record):
    """Milliseconds, of ok requests only; the two of the schedule belong to open loops."""

    ttft: Summary
    ttfo: Summary
    tpot: Summary
    icl: Summary
    e2e: Summary
    e2e_from_schedule: Summary | None = None
    queue: Summary | None = None


class Goodput(Record):
    """Requests that met every limit, failed ones included in the total."""

    share: float | None
    requests_per_s: float
    limits_ms: dict[str, float]


class Stage(Record):
    """One level of load. `achieved` is the mean number of requests under way in a closed loop."""

    name: str
    target: float
    achieved: float
    unit: str
    duration_s: float
    requests: Requests
    tokens: Tokens
    throughput: Throughput
    latency_ms: Latency
    goodput: Goodput
    saturated: bool | None = None


class Gate(Record):
    """One service-level objective and whether it was met; without a value it was not."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    expression: str
    value: float | None
    passed: bool = Field(serialization_alias="pass", validation_alias="pass")


class Client(Record):
    """Whether the load generator itself was good enough; `problems` says why not."""

    workers: int
    cpu_percent_max: float | None
    lag_ms_p99: float | None
    server_tokens: int | None
    counted_tokens: int | None
    valid: bool
    problems: tuple[str, ...] = ()


class Trials(Record):
    """Spread of the output tokens per second over repeated runs."""

    n: int = 1
    mean: float | None = None
    sd: float | None = None
    cv: float | None = None
    ci95: tuple[float, float] | None = None


class Flag(Record):
    """Something a reader of the numbers should know; it does not change the exit code."""

    name: str
    message: str


class Answer(Record):
    """A sample answer, to be read: numbers alone do not show nonsense."""

    prompt: str
    text: str
    finish_reason: str | None = None


class LoadTestResult(Record):
    """`result.json`."""

    schema_version: int = SCHEMA_VERSION
    run: Run
    server: dict[str, Any]
    host: Host
    workload: Workload
    stages: tuple[Stage, ...]
    trials: Trials
    gates: tuple[Gate, ...]
    client: Client
    flags: tuple[Flag, ...] = ()
    answers: tuple[Answer, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)

    @property
    def too_many_errors(self) -> bool:
        """Whether more requests failed than the objectives allow."""
        return any(
            gate.expression.startswith(ERROR_RATE) and gate.value is not None and not gate.passed
            for gate in self.gates
        )


def read_result(folder: Path) -> LoadTestResult:
    """Read a stored result; raises OSError or ValueError where there is none."""
    return LoadTestResult.model_validate_json((folder / RESULT).read_text("utf-8"))


def read_samples(folder: Path) -> tuple[Sample, ...]:
    """Read the raw requests of a stored result, in the order they were sent."""
    return tuple(sorted(_samples(folder / REQUESTS), key=lambda sample: sample.sent))


def _samples(path: Path) -> Iterator[Sample]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Sample.from_json(json.loads(line))
