"""A recommendation in words: the answer first, then how sure it is and where figures come from."""

from __future__ import annotations

from deployer.comparison import Comparison
from deployer.recipe.environment import Environment
from deployer.recommending.records import Figure, Prospect, Recommendation, RuledOut, number


def describe(found: Recommendation) -> list[str]:
    """The answer for people; what was ruled out is the table's."""
    name = found.environment.name
    if found.chosen is None:
        return [
            f"No format of {found.comparison} suits {name} ({found.environment.description}).",
            *_what_would_have_to_give(found),
        ]
    lines = [
        f"Take {_named(found.chosen)} for {name}.",
        f"  {name} is {found.environment.description}.",
        f"  It gives {_figures(found.chosen)}.",
        f"  Cost: {found.cost_how}",
        f"  Left free: {'; '.join(f'{s.of} {s.share:.0%} ({s.what})' for s in found.headroom)}.",
    ]
    if found.runner_up:
        lines.append(f"Runner-up: {_named(found.runner_up)}, {_figures(found.runner_up)}.")
    lines.append(f"What decided: {found.decided}")
    reasons = [doubt.reason for doubt in found.doubts]
    because = (
        f", because {'; '.join(reasons)}" if reasons else ", measured, with nothing against it"
    )
    return [*lines, f"How sure: {found.confidence}{because}."]


def ruled_out_rows(found: Recommendation) -> list[tuple[str, str, str]]:
    """(format, what ruled it out, the reason) for a table."""
    return [(each.name, each.kind.replace("-", " "), each.reason) for each in found.ruled_out]


def basis_lines(found: Recommendation) -> list[str]:
    """Where the figures come from, with the chosen format's own arithmetic."""
    lines = [*found.basis]
    if found.chosen:
        look = found.chosen.outlook
        figures = (look.output, look.ttft_p95_ms, look.tpot_p95_ms, look.e2e_p95_ms, look.memory)
        lines += [_arithmetic(each, each is look.memory) for each in figures]
    return lines


def _arithmetic(figure: Figure, of_memory: bool) -> str:
    if figure.basis == "measured":
        return figure.how
    result = f"{figure.mean / 1e9:.3g} GB" if of_memory else number(figure.mean)
    return f"ESTIMATE: {figure.how} = {result}"


def _named(each: Prospect) -> str:
    return f"{each.name} ({each.engine}, {each.bits_per_weight:.2f} bits a weight)"


def _figures(each: Prospect) -> str:
    look = each.outlook
    label = "" if look.output.basis == "measured" else " (ESTIMATE)"
    ttft = number(round(look.ttft_p95_ms.mean, 1))
    ratio = "" if each.perplexity_ratio is None else f"; perplexity x {each.perplexity_ratio:.3f}"
    return (
        f"{number(look.output.mean)} output tokens/s, TTFT p95 {ttft} ms, "
        f"TPOT p95 {look.tpot_p95_ms.mean:.3g} ms{label}{ratio}"
    )


def cost_in_words(chosen: Prospect, environment: Environment) -> str:
    """The cost of a million output tokens with its arithmetic."""
    output, money = chosen.outlook.output, environment.currency
    label = "" if output.basis == "measured" else ", an ESTIMATE"
    users = environment.load.users
    when = "fully loaded" if users is None else f"while {_users(users)} all the time"
    return (
        f"{chosen.cost:.3g} {money} per million output tokens = {environment.price_per_hour:g} "
        f"{money}/h / ({number(output.mean)} tokens/s x 3600 s/h) x 10^6, {when}{label}"
    )


def _users(count: int) -> str:
    return "one user asks" if count == 1 else f"{count} users ask"


def tie_in_words(chosen: Prospect, other: Prospect) -> str:
    """What puts one format before another that is as fast."""
    ours, theirs = chosen.perplexity_ratio, other.perplexity_ratio
    if theirs is None or ours is None or round(ours, 3) != round(theirs, 3):
        known = "unknown" if theirs is None else f"{theirs:.3f}"
        mine = "unknown" if ours is None else f"{ours:.3f}"
        return f"decided by quality: perplexity ratio {mine} of {chosen.name} against {known}"
    if chosen.weights_bytes == other.weights_bytes:
        return "quality and size are the same; the comparison names it first"
    return (
        f"the perplexity ratio is the same; decided by size: {chosen.weights_bytes / 1e6:.4g} MB "
        f"of {chosen.name} against {other.weights_bytes / 1e6:.4g}"
    )


def basis_in_words(
    comparison: Comparison, environment: Environment, measured: bool
) -> tuple[str, ...]:
    """On what the figures stand, in sentences."""
    here, asked = comparison.host, comparison.workload
    made = (
        f"Comparison {comparison.id}, made on {here.cpu}, {here.cores} cores: {asked.users} users, "
        f"prompts of {asked.prompt_tokens} and answers of {asked.output_tokens} tokens."
    )
    if measured and environment.gpu is None:
        return (made, f"A core of {environment.name} is taken to be as fast as one of those.")
    if measured:
        return (made,)
    return (
        made,
        "Quality is the weights' own and hardly depends on the hardware: it is taken over as it "
        "was measured there. Speed, latency and memory are an ESTIMATE from the GPU's data sheet, "
        "which takes llama.cpp and vLLM to be equally good at serving many users. Whether an "
        "engine runs a format there comes from the tables of `deployer plan`.",
    )


def _what_would_have_to_give(found: Recommendation) -> list[str]:
    """The limits each format misses, nearest first."""
    with_misses = [each for each in found.ruled_out if each.misses]
    if not with_misses:
        return ["None of them was measured and runs there; the table says why."]
    lines = ["What would have to give, nearest first:"]
    for each in sorted(with_misses, key=_distance):
        lines.append(f"  {each.name}: {'; '.join(miss.reason for miss in each.misses)}.")
    return lines


def _distance(each: RuledOut) -> tuple[int, float]:
    """How far a format is from passing: its number of misses, then the worst of them."""
    worst = max(float("inf") if m.excess is None else m.excess for m in each.misses)
    return (len(each.misses), worst)
