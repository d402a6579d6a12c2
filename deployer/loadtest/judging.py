"""Gates and exit codes: what the figures had to keep. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deployer.errors import EXIT_FAILED, EXIT_INVALID_MEASUREMENT, EXIT_OK
from deployer.recipe import LoadTest
from deployer.recipe.gates import LATENCIES, Expression, parse
from deployer.results import ERROR_RATE, Gate, LoadTestResult, Stage


def gates(workload: LoadTest, stages: Sequence[Stage]) -> tuple[Gate, ...]:
    """Every objective of the recipe, judged on the worst of `stages`."""
    slo = workload.slo
    limits = {"ttft": slo.ttft_p95_ms, "tpot": slo.tpot_p95_ms, "e2e": slo.e2e_p95_ms}
    asked = [
        *(
            Expression(f"{name}_p95_ms", "<=", limit)
            for name, limit in limits.items()
            if limit is not None
        ),
        *map(parse, workload.gates),
        Expression(ERROR_RATE, "<=", slo.max_error_rate),
    ]
    return tuple(_judged(expression, stages) for expression in dict.fromkeys(asked))


def _judged(expression: Expression, stages: Sequence[Stage]) -> Gate:
    """A gate without a value in one of the stages is not met."""
    values = [figure(stage, expression.name) for stage in stages]
    known = [value for value in values if value is not None]
    worst = None
    if known and len(known) == len(values):
        worst = max(known) if expression.upper else min(known)
    return Gate(
        expression=expression.text,
        value=worst,
        passed=worst is not None and expression.met_by(worst),
    )


def figure(stage: Stage, name: str) -> float | None:
    """A figure of a stage by its name in a gate; None where it was not measured."""
    if name in _FIGURES:
        return _FIGURES[name](stage)
    latency, _, point = name.removesuffix("_ms").rpartition("_")
    assert latency in LATENCIES, name
    summary = getattr(stage.latency_ms, latency)
    return None if summary is None else getattr(summary, point)


def _cached_share(stage: Stage) -> float | None:
    tokens = stage.tokens
    if not tokens.input or tokens.cached is None:
        return None
    return tokens.cached / tokens.input


_FIGURES: dict[str, Callable[[Stage], float | None]] = {
    "goodput": lambda stage: stage.goodput.share,
    "error_rate": lambda stage: stage.requests.error_rate,
    "output_tokens_per_s": lambda stage: stage.throughput.output_tokens_per_s,
    "requests_per_s": lambda stage: stage.throughput.requests_per_s,
    "cached_share": _cached_share,
}


def exit_code(result: LoadTestResult) -> int:
    """0 good; 1 too many errors, an objective missed, a sweep without a knee; 3 not to be trusted.

    Too many errors are a fact however slow the client was, so they come first; a missed latency
    objective in an invalid measurement is no finding.
    """
    missed = [gate for gate in result.gates if not gate.passed]
    if result.too_many_errors:
        return EXIT_FAILED
    if not result.client.valid:
        return EXIT_INVALID_MEASUREMENT
    no_knee = result.workload.profile == "sweep" and result.knee is None
    return EXIT_FAILED if missed or no_knee else EXIT_OK
