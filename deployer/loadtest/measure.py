"""Raw requests -> the result document. Pure: no clock, no file, no network.

A request belongs to the measurement when it was *sent* after the warm-up; it may finish after
the end. Throughput counts what *arrived* in the measured seconds, whenever it was sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from deployer import metrics
from deployer.errors import EXIT_FAILED, EXIT_INVALID_MEASUREMENT, EXIT_OK
from deployer.metrics import ERRORS, MEASURED, Limits, Sample
from deployer.recipe import LoadTest, Slo
from deployer.results import (
    ERROR_RATE,
    Answer,
    Client,
    Flag,
    Gate,
    Goodput,
    Host,
    Latency,
    LoadTestResult,
    Requests,
    Stage,
    Summary,
    Throughput,
    Tokens,
)

MAX_LAG_MS = 20.0
MAX_CPU_PERCENT = 80.0
MAX_TOKEN_MISMATCH = 0.01
TOKEN_SLACK = 8
"""Tokens the counts may differ by whatever the share: a health probe's few are no mismatch."""
MIN_ACHIEVED = 0.95
FEW_REQUESTS = 20


@dataclass(frozen=True)
class Window:
    """The measured seconds, on the clock of the samples."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return max(self.end - self.start, 0.0)


@dataclass(frozen=True)
class Worker:
    """What one Locust process said of itself when it ended; times on the samples' clock."""

    started: float
    stopping: float
    lag_ms_p99: float | None
    cpu_percent_max: float | None


def window(workload: LoadTest, samples: Sequence[Sample], workers: Sequence[Worker]) -> Window:
    """The measured seconds: after the warm-up until the end, or all measured requests (smoke)."""
    if workload.profile == "smoke":
        measured = [s for s in samples if s.phase == MEASURED]
        return Window(
            min((s.sent for s in measured), default=0.0),
            max((s.closed for s in measured), default=0.0),
        )
    start = max(worker.started for worker in workers) + workload.warmup
    return Window(start, min(start + workload.duration, *(w.stopping for w in workers)))


def stage(name: str, users: int, samples: Sequence[Sample], span: Window, limits: Limits) -> Stage:
    """The figures of one level of load in a closed loop of `users`."""
    measured = [s for s in samples if s.phase == MEASURED]
    ok = [s for s in measured if s.ok]
    return Stage(
        name=name,
        target=users,
        achieved=round(metrics.in_flight(samples, span.start, span.end), 3),
        unit="users" if users != 1 else "user",
        duration_s=round(span.seconds, 3),
        requests=_requests(samples, measured),
        tokens=_tokens(ok),
        throughput=_throughput(samples, span),
        latency_ms=_latency(ok),
        goodput=_goodput(measured, span, limits),
    )


def _requests(samples: Sequence[Sample], measured: Sequence[Sample]) -> Requests:
    classes = Counter(s.error for s in measured if s.error)
    cutoff = classes["cutoff"]
    failed = classes.total() - cutoff
    ok = len(measured) - classes.total()
    return Requests(
        sent=len(measured),
        ok=ok,
        failed=failed,
        cutoff=cutoff,
        warmup=len(samples) - len(measured),
        errors={name: classes[name] for name in ERRORS if classes[name] and name != "cutoff"},
        error_rate=round(failed / (ok + failed), 6) if ok + failed else None,
    )


def _tokens(ok: Sequence[Sample]) -> Tokens:
    def total(values: Sequence[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return sum(known) if known and len(known) == len(values) else None

    sources = sorted({s.token_source for s in ok}) or ["unknown"]
    return Tokens(
        input=total([s.prompt_tokens for s in ok]),
        cached=total([s.cached_tokens for s in ok]),
        output=total([s.output_tokens for s in ok]),
        source=" and ".join(sources),
    )


def _finished_in(samples: Sequence[Sample], span: Window) -> list[Sample]:
    return [s for s in samples if s.ok and s.last and span.start <= s.last <= span.end]


def _throughput(samples: Sequence[Sample], span: Window) -> Throughput:
    if not span.seconds:
        return Throughput(requests_per_s=0.0, output_tokens_per_s=None)
    known = [s for s in samples if s.output_tokens is not None]
    tokens = sum(metrics.tokens_within(s, span.start, span.end) for s in known)
    return Throughput(
        requests_per_s=round(len(_finished_in(samples, span)) / span.seconds, 3),
        output_tokens_per_s=round(tokens / span.seconds, 3) if known else None,
    )


def summary(values: Sequence[float | None], scale: float = 1.0) -> Summary:
    """`metrics.summarize` as a record of the document."""
    return Summary(**asdict(metrics.summarize(values, scale)))


def _latency(ok: Sequence[Sample]) -> Latency:
    def of(figure: Callable[[Sample], float | None]) -> Summary:
        return summary([figure(s) for s in ok], 1000)

    return Latency(
        ttft=of(metrics.ttft),
        ttfo=of(metrics.ttfo),
        tpot=of(metrics.tpot),
        icl=summary([gap for s in ok for gap in metrics.icl(s)], 1000),
        e2e=of(metrics.e2e),
    )


def limits_of(slo: Slo) -> Limits:
    """What one request must keep, in seconds, from a recipe's objectives in milliseconds."""

    def seconds(limit: float | None) -> float | None:
        return None if limit is None else limit / 1000

    return Limits(seconds(slo.ttft_p95_ms), seconds(slo.tpot_p95_ms), seconds(slo.e2e_p95_ms))


def _goodput(measured: Sequence[Sample], span: Window, limits: Limits) -> Goodput:
    counted = [s for s in measured if s.error != "cutoff"]
    good = [s for s in counted if limits.met_by(s)]
    rate = len(_finished_in(good, span)) / span.seconds if span.seconds else 0.0
    return Goodput(
        share=round(len(good) / len(counted), 6) if counted else None,
        requests_per_s=round(rate, 3),
        limits_ms={
            name: round(limit * 1000, 3)
            for name, limit in asdict(limits).items()
            if limit is not None
        },
    )


def gates(slo: Slo, stages: Sequence[Stage]) -> tuple[Gate, ...]:
    """Every objective of the recipe, judged on its worst stage."""
    limits = {"ttft": slo.ttft_p95_ms, "tpot": slo.tpot_p95_ms, "e2e": slo.e2e_p95_ms}
    found = []
    for name, limit in limits.items():
        if limit is not None:
            values = [getattr(stage.latency_ms, name).p95 for stage in stages]
            found.append(_gate(f"{name}_p95_ms", values, limit))
    rates = [stage.requests.error_rate for stage in stages]
    return (*found, _gate(ERROR_RATE, rates, slo.max_error_rate))


def _gate(name: str, values: Sequence[float | None], limit: float) -> Gate:
    known = [value for value in values if value is not None]
    worst = max(known) if known and len(known) == len(values) else None
    return Gate(
        expression=f"{name} <= {limit:g}",
        value=worst,
        passed=worst is not None and worst <= limit,
    )


def client(
    workers: Sequence[Worker],
    stages: Sequence[Stage],
    samples: Sequence[Sample],
    server_tokens: int | None,
) -> Client:
    """Whether the numbers may be trusted; `server_tokens` is what the server's counter grew by."""
    lag = max((w.lag_ms_p99 for w in workers if w.lag_ms_p99 is not None), default=None)
    cpu = max((w.cpu_percent_max for w in workers if w.cpu_percent_max is not None), default=None)
    counted = _counted(samples) if server_tokens is not None else None
    problems = [
        *_slow_client(lag, cpu),
        *_token_mismatch(server_tokens, counted),
        *(problem for stage in stages for problem in _too_few_under_way(stage)),
    ]
    return Client(
        workers=len(workers),
        cpu_percent_max=cpu,
        lag_ms_p99=lag,
        server_tokens=server_tokens,
        counted_tokens=counted,
        valid=not problems,
        problems=tuple(problems),
    )


def _counted(samples: Sequence[Sample]) -> int | None:
    """Output tokens of all requests, warm-up included; None where a request's are unknown."""
    if any(s.token_source != "usage" and s.status is not None for s in samples):
        return None
    return sum(s.output_tokens or 0 for s in samples)


def _slow_client(lag: float | None, cpu: float | None) -> list[str]:
    problems = []
    if lag is not None and lag > MAX_LAG_MS:
        problems.append(f"the load generator woke {lag:.1f} ms late (p99; {MAX_LAG_MS:g} allowed)")
    if cpu is not None and cpu > MAX_CPU_PERCENT:
        problems.append(f"a load worker used {cpu:.0f} % of a core ({MAX_CPU_PERCENT:g} allowed)")
    return problems


def _token_mismatch(server: int | None, counted: int | None) -> list[str]:
    if server is None or counted is None:
        return []
    if abs(server - counted) <= max(MAX_TOKEN_MISMATCH * counted, TOKEN_SLACK):
        return []
    return [f"the server counted {server} output tokens, the load test {counted}"]


def _too_few_under_way(stage: Stage) -> list[str]:
    if not stage.requests.ok + stage.requests.failed:
        return [f"{stage.name}: no request was sent and answered in the measured seconds"]
    if stage.requests.failed or stage.target == 1 or stage.achieved >= MIN_ACHIEVED * stage.target:
        return []
    return [f"{stage.name}: only {stage.achieved:.1f} requests were under way on average"]


def flags(
    samples: Sequence[Sample], stages: Sequence[Stage], host: Host, profile: str
) -> tuple[Flag, ...]:
    """What a reader should know before believing the numbers."""
    measured = [s for s in samples if s.phase == MEASURED]
    ok = [s for s in measured if s.ok]
    found = []
    if _all_degenerate(measured, ok):
        found.append(
            Flag(
                name="degenerate_output",
                message="Every answer is empty or one piece of text repeated: the model is "
                "probably broken, whatever its speed.",
            )
        )
    cut = sum(stage.requests.cutoff for stage in stages)
    if cut:
        found.append(Flag(name="cutoff", message=f"{cut} requests were cut off by the end."))
    if any(s.token_source == "unknown" for s in ok):
        found.append(
            Flag(name="tokens_unknown", message="The server tells no token counts in its streams.")
        )
    if profile != "smoke" and len(ok) < FEW_REQUESTS:
        found.append(
            Flag(
                name="few_requests",
                message=f"Only {len(ok)} requests were measured; percentiles are coarse. "
                "Measure for longer.",
            )
        )
    if host.load_before[0] > host.threads:
        found.append(
            Flag(
                name="host_busy",
                message=f"The load average was {host.load_before[0]:.1f} on {host.threads} "
                "threads before the test began.",
            )
        )
    return tuple(found)


def _all_degenerate(measured: Sequence[Sample], ok: Sequence[Sample]) -> bool:
    if not ok:
        return bool(measured) and all(s.error == "empty" for s in measured)
    return all(metrics.is_degenerate(s.text[: metrics.PREVIEW]) for s in ok)


def answers(samples: Sequence[Sample]) -> tuple[Answer, ...]:
    """Three answers to read: the first, the middle and the last of the good ones."""
    ok = [s for s in samples if s.ok and s.phase == MEASURED]
    picked = sorted({0, len(ok) // 2, len(ok) - 1}) if ok else []
    return tuple(
        Answer(
            prompt=ok[i].prompt,
            text=ok[i].text[: metrics.PREVIEW],
            finish_reason=ok[i].finish_reason,
        )
        for i in picked
    )


def exit_code(result: LoadTestResult) -> int:
    """0 good; 1 too many errors or an objective missed; 3 the measurement must not be trusted.

    Too many errors are a fact however slow the client was, so they come first; a missed latency
    objective in an invalid measurement is no finding.
    """
    missed = [gate for gate in result.gates if not gate.passed]
    if result.too_many_errors:
        return EXIT_FAILED
    if not result.client.valid:
        return EXIT_INVALID_MEASUREMENT
    return EXIT_FAILED if missed else EXIT_OK
