"""The choice: limits first, then cost, then quality, then size.

What runs there and keeps every limit is ranked by output tokens per second, which at one price is
the cost of a token. Formats that cannot be told apart in that are ranked by perplexity ratio (to
three decimals), and then by the size of their weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from deployer.comparison import Comparison, Row
from deployer.errors import UsageError
from deployer.ranking import pareto, tied
from deployer.recipe.environment import Environment
from deployer.recommending.doubts import confidence, doubts
from deployer.recommending.estimated import estimated_outlook
from deployer.recommending.limits import demand, misses, objectives, ratio_itself
from deployer.recommending.measured import measured_outlook, same_device
from deployer.recommending.records import Prospect, Recommendation, RuledOut, Spare, number
from deployer.recommending.running import obstacle
from deployer.recommending.words import basis_in_words, cost_in_words, tie_in_words

ESTIMATES_APART = 1.2
"""Two estimates of throughput are told apart from this ratio on: the formula knows no better."""


def recommend(comparison: Comparison, environment: Environment) -> Recommendation:
    """The format of a comparison that suits an environment, and why.

    Raises UsageError for a CPU where the comparison was made on a GPU: of that nothing follows.
    """
    measured = same_device(comparison, environment)
    if not measured and environment.gpu is None:
        raise UsageError(
            f"the comparison {comparison.id} was made on a GPU, which tells nothing of the CPU of "
            f"{environment.name}",
            "Compare with --set target.device=cpu on the recipes, or name another comparison.",
        )
    judged = [_judge(row, comparison, environment, measured) for row in comparison.rows]
    good = ranked([each for each in judged if isinstance(each, Prospect) and not each.misses])
    chosen, runner_up = good[0] if good else None, good[1] if len(good) > 1 else None
    found = doubts(comparison, environment, chosen, runner_up, measured) if chosen else ()
    return Recommendation(
        environment=environment,
        comparison=comparison.id,
        model=comparison.source,
        chosen=chosen,
        runner_up=runner_up,
        decided=_decided(chosen, runner_up, environment),
        cost_how=cost_in_words(chosen, environment) if chosen else "",
        headroom=_headroom(chosen, environment) if chosen else (),
        confidence=confidence(found) if chosen else None,
        doubts=found,
        ruled_out=tuple(_ruled_out(judged, good, environment)),
        basis=basis_in_words(comparison, environment, measured),
    )


def _judge(
    row: Row, comparison: Comparison, environment: Environment, measured: bool
) -> Prospect | RuledOut:
    """A row's figures in the environment and the limits it misses, or why it has none."""
    barred = obstacle(row, environment)
    if barred:
        return RuledOut(name=row.name, kind="not-runnable", reason=barred)
    if row.size is None:
        kind = "quality" if row.status == "refused" else "not-measured"
        if row.status == "unavailable" and measured:
            kind = "not-runnable"
        return RuledOut(name=row.name, kind=kind, reason=f"{row.status} here: {row.reason}")
    look = measured_outlook if measured else estimated_outlook
    outlook = look(row, comparison, environment)
    if outlook is None:
        why = "its latencies or its throughput were not measured at this load"
        return RuledOut(name=row.name, kind="not-measured", reason=why)
    return Prospect(
        name=row.name,
        engine=row.engine,
        scheme=row.scheme,
        weights_bytes=row.size.weights_bytes,
        bits_per_weight=row.size.bits_per_weight,
        perplexity_ratio=ratio_itself(row),
        outlook=outlook,
        cost=cost_per_million(environment, outlook.output.mean),
        misses=misses(row, environment, outlook, measured),
    )


def cost_per_million(environment: Environment, output: float) -> float:
    """Price of a million output tokens at `output` tokens per second, in its currency."""
    return environment.price_per_hour / (output * 3600) * 1e6


def as_fast(ours: Prospect, theirs: Prospect) -> bool:
    """Whether two throughputs cannot be told apart: by noise, or by what an estimate can say."""
    a, b = ours.outlook.output, theirs.outlook.output
    if "estimated" in (a.basis, b.basis):
        return max(a.mean, b.mean) <= ESTIMATES_APART * min(a.mean, b.mean)
    return tied(a.value, b.value)


def _slower(each: Prospect, chosen: Prospect) -> bool:
    """Whether a format is told apart from the chosen one and slower.

    One that is faster lost to its quality: both are as fast as the fastest of all.
    """
    faster = each.outlook.output.mean > chosen.outlook.output.mean
    return not faster and not as_fast(each, chosen)


def ranked(prospects: Sequence[Prospect]) -> list[Prospect]:
    """Best first: of those as fast as the fastest that is left, the best quality, then the size."""
    rest, order = list(prospects), []
    while rest:
        fastest = max(rest, key=lambda each: each.outlook.output.mean)
        equals = [each for each in rest if each is fastest or as_fast(each, fastest)]
        best = min(equals, key=_by_quality)
        order.append(best)
        rest.remove(best)
    return order


def _by_quality(each: Prospect) -> tuple[float, int]:
    ratio = each.perplexity_ratio
    return (float("inf") if ratio is None else round(ratio, 3), each.weights_bytes)


def _decided(chosen: Prospect | None, runner_up: Prospect | None, environment: Environment) -> str:
    if chosen is None:
        return ""
    if runner_up is None:
        return "It is the only one that keeps every limit."
    if not _slower(runner_up, chosen):
        return f"A tie in throughput; {tie_in_words(chosen, runner_up)}."
    ours, theirs = chosen.outlook.output.mean, runner_up.outlook.output.mean
    return (
        f"Throughput: {number(ours)} output tokens/s against {number(theirs)}, hence "
        f"{chosen.cost:.3g} against {runner_up.cost:.3g} {environment.currency} per million."
    )


def _ruled_out(
    judged: Sequence[Prospect | RuledOut], good: Sequence[Prospect], environment: Environment
) -> list[RuledOut]:
    """One reason for each format but the first two, in the comparison's order."""
    found = []
    for each in judged:
        if isinstance(each, RuledOut):
            found.append(each)
        elif each.misses:
            first = each.misses[0]
            found.append(
                RuledOut(name=each.name, kind=first.kind, reason=first.reason, misses=each.misses)
            )
        elif each not in good[:2]:
            found.append(_outranked(each, good[0], environment))
    return found


def _outranked(each: Prospect, chosen: Prospect, environment: Environment) -> RuledOut:
    """Why a format that keeps every limit is not chosen."""
    if pareto({name.name: _point(name) for name in (each, chosen)}) == (chosen.name,):
        reason = f"{chosen.name} is better or equal in throughput, quality and size"
        return RuledOut(name=each.name, kind="dominated", reason=reason)
    if not _slower(each, chosen):
        reason = f"as fast as {chosen.name}; {tie_in_words(chosen, each)}"
        return RuledOut(name=each.name, kind="tie", reason=reason)
    reason = (
        f"a million output tokens cost {each.cost:.3g} {environment.currency}, with "
        f"{chosen.name} {chosen.cost:.3g}"
    )
    return RuledOut(name=each.name, kind="cost", reason=reason)


def _point(each: Prospect) -> tuple[float, float, float]:
    return (-each.outlook.output.mean, *_by_quality(each))


def _headroom(chosen: Prospect, environment: Environment) -> tuple[Spare, ...]:
    """What is left of memory, of the objective that is nearest to its limit, and of throughput."""
    outlook = chosen.outlook
    needed, there = outlook.memory.mean, outlook.memory_there
    found = [
        Spare(
            of="memory", share=1 - needed / there,
            what=f"{needed / 1e9:.3g} of {there / 1e9:.3g} GB",
        )
    ]  # fmt: skip
    spares = [
        Spare(of="SLO", share=1 - f.mean / limit, what=f"{name} {f.mean:.3g} of {limit:g} ms")
        for name, f, limit in objectives(environment, outlook)
    ]
    if spares:
        found.append(min(spares, key=lambda spare: spare.share))
    asked = demand(environment)
    if asked is not None:
        what = f"{number(asked)} of {number(outlook.output.mean)} output tokens/s"
        found.append(Spare(of="throughput", share=1 - asked / outlook.output.mean, what=what))
    return tuple(found)
