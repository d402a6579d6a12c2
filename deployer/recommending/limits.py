"""Which of an environment's limits a format would miss, and by how much.

Quality is held to the unfavourable end of its 95 % interval; latencies and memory to their mean
(an interval that reaches beyond a limit is a doubt, see `doubts`).
"""

from __future__ import annotations

from collections.abc import Iterator

from deployer.comparison import Row
from deployer.recipe.environment import Environment
from deployer.recommending.measured import level_for
from deployer.recommending.records import Figure, Miss, Outlook, number

WHOLE = ("f16", "bf16", "f32")
"""llama.cpp's types that round nothing away of a 16-bit model."""


def whole(row: Row) -> bool:
    """Whether a format is the 16-bit model itself, with which the others are compared."""
    return row.method == "none" or row.scheme in WHOLE


def perplexity_ratio(row: Row) -> float | None:
    """Perplexity over the 16-bit model's, upper end of its interval; 1 for 16-bit weights."""
    return _of_quality(row, "perplexity_ratio", "value", 1.0)


def ratio_itself(row: Row) -> float | None:
    """Perplexity over the 16-bit model's, without its interval."""
    found = (row.quality or {}).get("perplexity_ratio")
    return float(found["value"]) if found else perplexity_ratio(row)


def divergence(row: Row) -> float | None:
    """Mean KL divergence, nats a token, upper end of its interval; 0 for 16-bit weights."""
    return _of_quality(row, "kl_divergence", "mean", 0.0)


def _of_quality(row: Row, name: str, inner: str, of_16_bit: float) -> float | None:
    found = (row.quality or {}).get(name)
    if found is None:
        return of_16_bit if whole(row) else None
    return float(found.get("high", found[inner]))


def misses(
    row: Row, environment: Environment, outlook: Outlook, measured: bool
) -> tuple[Miss, ...]:
    """All limits that are missed, in the order memory, quality, objectives, throughput.

    `measured` says that the outlook comes from the comparison's own level of load.
    """
    found = [*_memory(outlook), *_quality(row, environment)]
    if measured:
        found += _errors(row, environment)
    return (*found, *_slo(environment, outlook), *_throughput(environment, outlook))


def _memory(outlook: Outlook) -> Iterator[Miss]:
    needed, there = outlook.memory.mean, outlook.memory_there
    if needed > there:
        reason = f"needs {needed / 1e9:.3g} GB of memory, and {there / 1e9:.3g} GB may be used"
        yield Miss(kind="memory", reason=reason, excess=needed / there)


def _quality(row: Row, environment: Environment) -> Iterator[Miss]:
    limits = environment.quality
    upper = (
        ("perplexity ratio", perplexity_ratio(row), limits.max_perplexity_ratio),
        ("KL divergence", divergence(row), limits.max_kl_divergence),
    )
    lower = (
        ("top-1 agreement", top1_agreement(row), limits.min_top1_agreement),
        ("task recovery", least_recovery(row), limits.min_task_recovery),
    )
    for name, value, limit in (*upper, *lower):
        if limit is not None and value is None:
            yield Miss(kind="quality", reason=f"its {name} is not known", excess=None)
    for name, value, limit in upper:
        if limit is not None and value is not None and value > limit:
            reason = f"{name} may be {value:.4g}, and the limit is {limit:g}"
            yield Miss(kind="quality", reason=reason, excess=value / limit)
    for name, value, limit in lower:
        if limit is not None and value is not None and value < limit:
            reason = f"{name} is {value:.3g}, and at least {limit:g} is asked for"
            yield Miss(kind="quality", reason=reason, excess=limit / value if value else None)


def top1_agreement(row: Row) -> float | None:
    """Share of tokens with the 16-bit model's first choice; 1 for 16-bit weights."""
    found = (row.quality or {}).get("top1_agreement")
    if found is None:
        return 1.0 if whole(row) else None
    return float(found)


def least_recovery(row: Row) -> float | None:
    """The least recovery of all tasks; 1 for 16-bit weights, None where no task was asked."""
    found = [score.recovery for score in row.tasks if score.recovery is not None]
    if not found:
        return 1.0 if whole(row) else None
    return min(found)


def objectives(environment: Environment, outlook: Outlook) -> list[tuple[str, Figure, float]]:
    """(name, the format's figure, the limit) of each latency that has a limit, milliseconds."""
    slo = environment.slo
    every = (
        ("TTFT p95", outlook.ttft_p95_ms, slo.ttft_p95_ms),
        ("TPOT p95", outlook.tpot_p95_ms, slo.tpot_p95_ms),
        ("E2E p95", outlook.e2e_p95_ms, slo.e2e_p95_ms),
    )
    return [(name, figure, limit) for name, figure, limit in every if limit is not None]


def _errors(row: Row, environment: Environment) -> Iterator[Miss]:
    assert row.serving
    level = level_for(row.serving, environment)
    if level.failed:
        reason = f"{level.failed} of {level.requests} requests failed when it was measured"
        yield Miss(kind="slo", reason=reason, excess=1 + level.failed / max(1, level.requests))


def _slo(environment: Environment, outlook: Outlook) -> Iterator[Miss]:
    for name, figure, limit in objectives(environment, outlook):
        if figure.mean > limit:
            reason = f"{name} is {figure.mean:.3g} ms{_label(figure)}, and the limit is {limit:g}"
            yield Miss(kind="slo", reason=reason, excess=figure.mean / limit)


def _throughput(environment: Environment, outlook: Outlook) -> Iterator[Miss]:
    asked = demand(environment)
    if asked is not None and outlook.output.mean < asked:
        reason = (
            f"gives {number(outlook.output.mean)} output tokens/s{_label(outlook.output)}, and "
            f"{number(asked)} are asked for"
        )
        yield Miss(kind="throughput", reason=reason, excess=asked / outlook.output.mean)


def demand(environment: Environment) -> float | None:
    """Output tokens per second that a load of requests asks for; None where users wait."""
    load = environment.load
    return None if load.requests_per_s is None else load.requests_per_s * load.output_tokens


def _label(figure: Figure) -> str:
    return "" if figure.basis == "measured" else " (ESTIMATE)"
