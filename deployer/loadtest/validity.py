"""Whether the numbers may be trusted, and what a reader should know first. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from deployer import metrics
from deployer.loadtest.measure import Part
from deployer.metrics import MEASURED, Sample
from deployer.results import Client, Flag, Host, Stage

MAX_LAG_MS = 20.0
MAX_CPU_PERCENT = 80.0
MAX_TOKEN_MISMATCH = 0.01
TOKEN_SLACK = 8
"""Tokens the counts may differ by whatever the share: a health probe's few are no mismatch."""
MIN_ACHIEVED = 0.95
FEW_REQUESTS = 20


def client(
    stages: Sequence[Stage],
    parts: Sequence[Sequence[Part]],
    server_tokens: int | None,
) -> Client:
    """Whether the numbers may be trusted; `server_tokens` is what the server's counter grew by.

    `parts` are the trials of each stage.
    """
    every = [part for trials in parts for part in trials]
    workers = [worker for part in every for worker in part.workers]
    samples = [s for part in every for s in part.samples]
    lag = max((w.lag_ms_p99 for w in workers if w.lag_ms_p99 is not None), default=None)
    cpu = max((w.cpu_percent_max for w in workers if w.cpu_percent_max is not None), default=None)
    late = max((_late(part) or 0.0 for part in every if part.planned is not None), default=None)
    counted = _counted(samples) if server_tokens is not None else None
    problems = [
        *_slow_client(lag, cpu, late),
        *_token_mismatch(server_tokens, counted),
        *(
            problem
            for stage, trials in zip(stages, parts, strict=True)
            for problem in (*_too_few_under_way(stage), *_too_few_sent(stage, trials))
        ),
    ]
    return Client(
        workers=max((len(part.workers) for part in every), default=0),
        cpu_percent_max=cpu,
        lag_ms_p99=lag,
        schedule_lag_ms_p99=late,
        server_tokens=server_tokens,
        counted_tokens=counted,
        valid=not problems,
        problems=tuple(problems),
    )


def _late(part: Part) -> float | None:
    """How late the measured requests of an open loop were begun: p99, milliseconds."""
    lags = [
        lag for s in part.samples if s.phase == MEASURED and (lag := metrics.lag(s)) is not None
    ]
    return round(metrics.percentile(lags, 99) * 1000, 3) if lags else None


def _counted(samples: Sequence[Sample]) -> int | None:
    """Output tokens of all requests, warm-up included; None where a request's are unknown."""
    if any(s.token_source != "usage" and s.status is not None for s in samples):
        return None
    return sum(s.output_tokens or 0 for s in samples)


def _slow_client(lag: float | None, cpu: float | None, late: float | None) -> list[str]:
    problems = []
    if lag is not None and lag > MAX_LAG_MS:
        problems.append(f"the load generator woke {lag:.1f} ms late (p99; {MAX_LAG_MS:g} allowed)")
    if late is not None and late > MAX_LAG_MS:
        problems.append(
            f"requests were begun {late:.1f} ms after they were due (p99; {MAX_LAG_MS:g} allowed)"
        )
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
    """Idle users of a closed loop; users who think between questions are meant to be idle."""
    answered = stage.requests.ok + stage.requests.failed
    if not (stage.requests.sent if stage.offered is not None else answered):
        return [f"{stage.name}: no request was sent and answered in the measured seconds"]
    busy = stage.target == 1 or stage.achieved >= MIN_ACHIEVED * stage.target
    if stage.offered is not None or stage.turns or stage.requests.failed or busy:
        return []
    return [f"{stage.name}: only {stage.achieved:.1f} requests were under way on average"]


def _too_few_sent(stage: Stage, parts: Sequence[Part]) -> list[str]:
    planned = sum(part.planned or 0 for part in parts)
    if stage.requests.sent >= MIN_ACHIEVED * planned:
        return []
    return [f"{stage.name}: only {stage.requests.sent} of {planned} planned requests were sent"]


def flags(
    samples: Sequence[Sample], stages: Sequence[Stage], host: Host, profile: str, warmup: float = 0
) -> tuple[Flag, ...]:
    """What a reader should know before believing the numbers; `warmup` in seconds."""
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
    if profile != "smoke":
        found += _few_requests(stages)
    found += _short_warmup(stages, warmup)
    if host.load_before[0] > host.threads:
        found.append(
            Flag(
                name="host_busy",
                message=f"The load average was {host.load_before[0]:.1f} on {host.threads} "
                "threads before the test began.",
            )
        )
    return tuple(found)


def _few_requests(stages: Sequence[Stage]) -> list[Flag]:
    """The stage with the fewest: a sweep judges each of its rates by itself."""
    least = min(stages, key=lambda stage: stage.requests.ok)
    if least.requests.ok >= FEW_REQUESTS:
        return []
    where = f" at {least.name}" if len(stages) > 1 else ""
    return [
        Flag(
            name="few_requests",
            message=f"Only {least.requests.ok} requests were measured{where}; percentiles are "
            "coarse. Measure for longer.",
        )
    ]


def _short_warmup(stages: Sequence[Stage], warmup: float) -> list[Flag]:
    """An open loop needs a request's time to fill the server."""
    longest = max((s.latency_ms.e2e.p50 or 0.0 for s in stages if not s.saturated and s.offered),
                  default=0.0)  # fmt: skip
    if longest <= 1000 * warmup:
        return []
    return [
        Flag(
            name="short_warmup",
            message=f"A request took {longest / 1000:.1f} s (median), longer than the warm-up of "
            f"{warmup:g} s: the rate that was reached is told too low.",
        )
    ]


def _all_degenerate(measured: Sequence[Sample], ok: Sequence[Sample]) -> bool:
    if not ok:
        return bool(measured) and all(s.error == "empty" for s in measured)
    return all(metrics.is_degenerate(s.text[: metrics.PREVIEW]) for s in ok)
