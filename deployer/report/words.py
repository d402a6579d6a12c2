"""How figures are written: few digits, the unit always there, a dash for what is not known."""

from __future__ import annotations

from deployer.results import Gate, Stage, Summary, Trials, Workload

DASH = "–"

DEFINITIONS = {
    "ttft": (
        "TTFT",
        "Time to first token: request sent to the first chunk with content, reasoning or a tool "
        "call. A chunk with only the role does not count.",
    ),
    "ttfo": ("TTFO", "As TTFT, but reasoning does not count."),
    "tpot": (
        "TPOT",
        "Time per output token after the first chunk: (last token - first token) / (tokens - "
        "tokens in the first chunk).",
    ),
    "icl": ("ICL", "Inter-chunk latency: the raw gaps between chunks, whatever they hold."),
    "e2e": ("E2E", "Request sent to the last token."),
    "e2e_from_schedule": (
        "E2E from schedule",
        "From when the request was due to the last token: what a user waits who came then.",
    ),
    "queue": ("Queue", "Due to sent: the load generator's own lag, and the connect."),
    "connect": ("Connect", "Time to open the connection, before the clock of TTFT starts."),
}
"""Name and definition of each latency, by its field of `results.Latency`."""

METHOD = (
    "A request counts when it was sent after the warm-up, or in an open loop due after it; it may "
    "finish after the end. Throughput counts what arrived in the measured seconds.",
    "Tokens are the server's own count (usage), never the number of chunks.",
    "Percentiles are exact, linear between the two nearest values; p99 is left out below 100 "
    "values.",
    "Failed requests never enter a latency. Requests cut off by the end are left out.",
    "Every request has its own connection, opened before the clock starts.",
)
CACHES = {
    "nonce": "Every prompt starts with a nonce, so that a warm prefix cache cannot flatter the "
    "TTFT.",
    "warm": "A few prompts were sent again and again, each once before the load: the TTFT is that "
    "of a warm prefix cache.",
    "chat": "Conversations go on from their own history, which the server may have cached.",
    "prefix": "All requests share a system prompt, which the server may have cached; the rest of "
    "each starts with a nonce.",
}
SWEEP = (
    "Saturated: fewer than 95 % of the requests sent in the measured seconds were answered in "
    "them, or goodput is below 95 %. The knee is the highest rate below the lowest saturated one.",
    "Goodput: requests within every limit; failed ones are not. The objectives are judged at the "
    "knee.",
)


def method(work: Workload) -> list[str]:
    """How a load test measured, a sentence or two a line."""
    cache = CACHES.get(work.profile) or CACHES.get(work.cache_mode)
    return [*METHOD, *([cache] if cache else []), *(SWEEP if work.profile == "sweep" else ())]


def ms(value: float | None) -> str:
    """Milliseconds with three digits or so: "8.42 ms", "84.2 ms", "842 ms", "8.42 s"."""
    number, unit = ms_parts(value)
    return f"{number} {unit}".strip()


def ms_parts(value: float | None) -> tuple[str, str]:
    """The number and the unit of `ms`, to be set in different sizes."""
    if value is None:
        return DASH, ""
    if value >= 999.5:
        return f"{value / 1000:.{2 if value < 9995 else 1}f}", "s"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}", "ms"


def rate(value: float | None) -> str:
    """A rate with three digits or so."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def share(value: float | None) -> str:
    """A share as a percentage; what is not all is never written as 100 %."""
    if value is None:
        return DASH
    percent = value * 100
    if percent in (0.0, 100.0):
        return f"{percent:.0f} %"
    return f"{min(max(percent, 0.1), 99.9):.1f} %"


def gate_value(gate: Gate) -> str:
    """What a gate measured, in the unit of its expression."""
    if gate.value is None:
        return DASH
    if "_ms " in gate.expression:
        return f"{gate.value:,.1f}"
    return f"{gate.value:.4g}"


def pair(summary: Summary) -> str:
    """p50/p99 for a table cell; the unit once."""
    return pair_of(summary.p50, summary.p99)


def pair_of(low: float | None, high: float | None) -> str:
    return f"{ms(low)} / {ms(high)}"


def spread(name: str, trials: Trials) -> tuple[str, str, str, str]:
    """(name, mean, 95 % interval, coefficient of variation) of a figure over trials."""
    shown = ms if name.endswith("_ms") else share if name == "goodput" else rate
    low, high = trials.ci95 or (None, None)
    cv = DASH if trials.cv is None else f"{100 * trials.cv:.1f} %"
    label = name.removesuffix("_ms").replace("_per_s", "/s").replace("_", " ")
    return label, shown(trials.mean), f"{shown(low)} to {shown(high)}", cv


def count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def cached_share(stage: Stage) -> float | None:
    """Share of the input tokens that a prefix cache saved; None where it is not known."""
    tokens = stage.tokens
    if tokens.input is None or tokens.cached is None or not tokens.input:
        return None
    return tokens.cached / tokens.input


def short_model(name: str) -> str:
    """A model's name; of a path only its last part."""
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".")) else name


def counted(number: int, what: str) -> str:
    """ "1 trial", "3 trials"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def markdown(text: str) -> str:
    """Text that stays text inside a Markdown table."""
    for special in ("\\", "|", "`", "*", "_", "["):
        text = text.replace(special, "\\" + special)
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
