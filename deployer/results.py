"""The result document of a load test: frozen records, and its files in one folder.

    result.json      the document, schema_version 1
    requests.jsonl   every request with its raw times (metrics.Sample), seconds from the start
    requests.csv     one row a request
    plan.jsonl       what was to be sent, and in an open loop when; of a sweep or of several trials
                     in a folder for each, with its workload.json and locust.log
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
PLAN, TOLD = "plan.jsonl", "workload.json"


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
    """What was asked of the server.

    `lengths` says where they come from: fixed, normal, chats or trace. `source` is the name of the
    file of chats or of the trace, with its SHA-256.
    """

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
    lengths: str = "fixed"
    source: str | None = None
    trials: int = 1


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
    """Milliseconds, of ok requests only; the two of the schedule belong to open loops.

    `connect` is the time to open the connection, which no other latency but `queue` and
    `e2e_from_schedule` holds.
    """

    ttft: Summary
    ttfo: Summary
    tpot: Summary
    icl: Summary
    e2e: Summary
    e2e_from_schedule: Summary | None = None
    queue: Summary | None = None
    connect: Summary | None = None


class Goodput(Record):
    """Requests that met every limit, failed ones included in the total."""

    share: float | None
    requests_per_s: float
    limits_ms: dict[str, float]


class Trials(Record):
    """A figure over repeated runs: mean, standard deviation, sd / mean, 95 % interval of the mean.

    Student's t; one run has no spread.
    """

    n: int = 1
    mean: float | None = None
    sd: float | None = None
    cv: float | None = None
    ci95: tuple[float, float] | None = None


class Turn(Record):
    """One question of the conversations, counted from 0, over all of them; milliseconds."""

    turn: int
    n: int
    ttft_p50_ms: float | None
    input_tokens: float | None
    cached_share: float | None


class Stage(Record):
    """One level of load.

    In a closed loop `achieved` is the mean number of requests under way, in an open loop the
    requests per second that were answered, and `offered` those that were sent. `saturated` is
    told of open loops. `trials` has the spread of figures where the stage was repeated; all
    other figures are of its trials together.
    """

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
    offered: float | None = None
    saturated: bool | None = None
    trials: dict[str, Trials] = Field(default_factory=dict)
    turns: tuple[Turn, ...] = ()


class Gate(Record):
    """One service-level objective and whether it was met; without a value it was not."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    expression: str
    value: float | None
    passed: bool = Field(serialization_alias="pass", validation_alias="pass")


class Client(Record):
    """Whether the load generator itself was good enough; `problems` says why not.

    `schedule_lag_ms_p99` is how late an open loop's requests were begun.
    """

    workers: int
    cpu_percent_max: float | None
    lag_ms_p99: float | None
    schedule_lag_ms_p99: float | None = None
    server_tokens: int | None
    counted_tokens: int | None
    valid: bool
    problems: tuple[str, ...] = ()


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
    """`result.json`. `knee` is the index of a sweep's last stage before saturation."""

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
    knee: int | None = None

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)

    @property
    def main_stage(self) -> Stage:
        """The stage that stands for the whole: the knee of a sweep, else the first."""
        return self.stages[self.knee or 0]

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
