"""Load tests of one format, one a trial -> the figures of a comparison. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deployer import metrics
from deployer.comparison import SPREAD, Estimate, Latency, Level, estimate, known
from deployer.metrics import MEASURED, Sample
from deployer.results import LoadTestResult, Stage, Summary

Run = tuple[LoadTestResult, Sequence[Sample]]
"""A stored load test and its raw requests."""
FEWEST = 5
"""Answered requests of a trial; percentiles of fewer are one request's luck."""
TOO_FEW = f"fewer than {FEWEST} requests were answered in a trial, measure for longer"
_MS = 1000.0


def level(users: int, runs: Sequence[Run]) -> Level:
    """What a level of load measured; `runs` are its trials in their order, each of one stage."""
    stages = [result.stages[0] for result, _ in runs]
    limited = any(stage.goodput.limits_ms for stage in stages)
    return Level(
        users=users,
        requests=sum(stage.requests.ok for stage in stages),
        failed=sum(stage.requests.failed for stage in stages),
        prefill=_of(stages, _prefill) if users == 1 else None,
        decode=_of(stages, lambda stage: _inverse(stage.latency_ms.tpot.p50)),
        output=_of(stages, lambda stage: stage.throughput.output_tokens_per_s),
        requests_per_s=known([stage.throughput.requests_per_s for stage in stages]),
        ttft=_latency(runs, lambda stage: stage.latency_ms.ttft, metrics.ttft),
        tpot=_latency(runs, lambda stage: stage.latency_ms.tpot, metrics.tpot),
        e2e=_latency(runs, lambda stage: stage.latency_ms.e2e, metrics.e2e),
        goodput=_of(stages, lambda stage: stage.goodput.share) if limited else None,
        runs=tuple(result.run.id for result, _ in runs),
        problems=(
            *(
                f"trial {number}: {problem}"
                for number, (result, _) in enumerate(runs, 1)
                for problem in (*result.client.problems, *_broken(result))
            ),
            *((TOO_FEW,) if min(stage.requests.ok for stage in stages) < FEWEST else ()),
        ),
    )


def _broken(result: LoadTestResult) -> list[str]:
    """Flags that say the figures are of nonsense."""
    return [flag.message for flag in result.flags if flag.name == "degenerate_output"]


def _of(stages: Sequence[Stage], figure: Callable[[Stage], float | None]) -> Estimate | None:
    return estimate([figure(stage) for stage in stages])


def _prefill(stage: Stage) -> float | None:
    """Prompt tokens a second of one user: those no cache saved, mean of a request / median TTFT."""
    tokens, first = stage.tokens, stage.latency_ms.ttft.p50
    if tokens.input is None or not first or not stage.requests.ok:
        return None
    computed = tokens.input - (tokens.cached or 0)
    return computed / stage.requests.ok / first * _MS


def _inverse(milliseconds: float | None) -> float | None:
    return _MS / milliseconds if milliseconds else None


def _latency(
    runs: Sequence[Run],
    summary: Callable[[Stage], Summary],
    figure: Callable[[Sample], float | None],
) -> Latency | None:
    stages = [result.stages[0] for result, _ in runs]
    p50 = _of(stages, lambda stage: summary(stage).p50)
    p95 = _of(stages, lambda stage: summary(stage).p95)
    if p50 is None or p95 is None:
        return None
    measured = (s for _, samples in runs for s in samples if s.ok and s.phase == MEASURED)
    values = [value * _MS for s in measured if (value := figure(s)) is not None]
    return Latency(
        p50=p50,
        p95=p95,
        spread=tuple(round(metrics.percentile(values, p), 3) for p in SPREAD),
    )
