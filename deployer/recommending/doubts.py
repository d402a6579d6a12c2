"""How sure a recommendation is: what speaks against trusting it, and what follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from deployer.comparison import Comparison, Row
from deployer.ranking import tied
from deployer.recipe.environment import Environment
from deployer.recommending.limits import divergence, objectives, perplexity_ratio, top1_agreement
from deployer.recommending.measured import level_for
from deployer.recommending.records import Doubt, Prospect

NEAR = 0.95
"""A limit of which more than this share is used is nearly missed."""
MANY = 3
"""So many doubts, none of them grave, make the confidence low."""


def confidence(found: Sequence[Doubt]) -> Literal["high", "medium", "low"]:
    """high without a doubt; low with a grave one or several; else medium."""
    if any(doubt.grave for doubt in found) or len(found) >= MANY:
        return "low"
    return "medium" if found else "high"


def doubts(
    comparison: Comparison,
    environment: Environment,
    chosen: Prospect,
    runner_up: Prospect | None,
    measured: bool,
) -> tuple[Doubt, ...]:
    """What makes the choice less sure, grave doubts first."""
    rows = [comparison.row(each.name) for each in (chosen, runner_up) if each]
    found = [
        *_of_the_hardware(comparison, environment, chosen, measured),
        *(_of_the_trials(comparison, environment, rows) if measured else ()),
        *_of_the_load(comparison, environment, measured),
        *_of_the_tie(chosen, runner_up),
        *_of_the_limits(rows[0], chosen, environment),
    ]
    return tuple(sorted(found, key=lambda doubt: not doubt.grave))


def _of_the_hardware(
    comparison: Comparison, environment: Environment, chosen: Prospect, measured: bool
) -> Iterator[Doubt]:
    here = comparison.host
    if not measured and environment.gpu:
        yield Doubt(
            reason=f"nothing was measured on {environment.gpu.name}: speed, latency and memory are "
            "an ESTIMATE",
            grave=True,
        )
    elif environment.gpu is None and environment.cores != here.cores:
        yield Doubt(
            reason=f"measured on {here.cores} cores, ESTIMATE for {environment.cores}: that they "
            "share the work without loss is the best case"
        )
    elif chosen.outlook.memory.basis == "estimated":
        yield Doubt(reason="its peak memory was not measured")


def _of_the_trials(
    comparison: Comparison, environment: Environment, rows: Sequence[Row]
) -> Iterator[Doubt]:
    names = {row.name for row in rows}
    disturbed = sorted({t.format for t in comparison.trials if t.contended and t.format in names})
    if disturbed:
        yield Doubt(
            reason=f"the machine was busy with something else in a trial of {', '.join(disturbed)}",
            grave=True,
        )
    for row in rows:
        level = level_for(row.serving, environment) if row.serving else None
        if level and level.problems:
            yield Doubt(reason=f"{row.name}: {level.problems[0]}", grave=True)
        if level and level.output and level.output.low is None:
            yield Doubt(reason=f"{row.name} was measured once, which tells nothing of noise")


def _of_the_load(
    comparison: Comparison, environment: Environment, measured: bool
) -> Iterator[Doubt]:
    load, asked = environment.load, comparison.workload
    lengths = (load.prompt_tokens, load.output_tokens)
    others = (asked.prompt_tokens, asked.output_tokens)
    if measured and lengths != others:
        yield Doubt(
            reason=f"measured with prompts of {others[0]} and answers of {others[1]} tokens, "
            f"ESTIMATE for {lengths[0]} and {lengths[1]}"
        )
    if measured and load.users not in (None, 1, asked.users):
        yield Doubt(reason=f"measured with {asked.users} users, ESTIMATE for {load.users}")
    if measured and load.requests_per_s:
        yield Doubt(
            reason=f"measured with {asked.users} users who wait for their answers; requests that "
            "come at random wait longer at times"
        )


def _of_the_tie(chosen: Prospect, runner_up: Prospect | None) -> Iterator[Doubt]:
    if runner_up is None:
        return
    ours, theirs = chosen.outlook.output, runner_up.outlook.output
    if ours.basis != "estimated" and tied(ours.value, theirs.value):
        yield Doubt(reason=f"{runner_up.name} is as fast within noise")


def _of_the_limits(row: Row, chosen: Prospect, environment: Environment) -> Iterator[Doubt]:
    """Limits of which nearly all is used, or that an interval reaches beyond."""
    limits = environment.quality
    used = [(name, f.high / limit) for name, f, limit in objectives(environment, chosen.outlook)]
    ratio, kld, top1 = perplexity_ratio(row), divergence(row), top1_agreement(row)
    if limits.max_perplexity_ratio and ratio is not None and ratio > 1:
        # Of a ratio only what is above 1 is loss.
        used.append(("perplexity ratio", (ratio - 1) / max(limits.max_perplexity_ratio - 1, 1e-9)))
    if limits.max_kl_divergence and kld is not None:
        used.append(("KL divergence", kld / limits.max_kl_divergence))
    if limits.min_top1_agreement and top1 is not None and top1 < 1:
        used.append(("top-1 agreement", (1 - top1) / max(1 - limits.min_top1_agreement, 1e-9)))
    used.append(("memory", chosen.outlook.memory.high / chosen.outlook.memory_there))
    for name, share in used:
        if share > 1:
            yield Doubt(reason=f"the interval of {name} reaches beyond its limit")
        elif share > NEAR:
            yield Doubt(reason=f"{name} is within {1 - NEAR:.0%} of its limit")
