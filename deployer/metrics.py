"""What is measured of one streamed answer, and the formulas that turn many into figures.

Standard library only: Locust's process imports this module too, and its stamps must not wait for
anything heavy. All times are seconds of one monotonic clock; figures are given in milliseconds.

    due ──► opened ──► sent ──────────► first ──► … ──► last ──► closed
        lag      connect       TTFT             (N - n_first) x TPOT
    └── queue ────────┘└────────────── E2E ──────────────┘
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

ERRORS = {
    "connect": "no connection, or it was closed before an answer began",
    "timeout": "nothing came for longer than the network timeout",
    "http_4xx": "status 4xx other than 429",
    "http_429": "status 429, too many requests",
    "http_5xx": "status 5xx",
    "sse_error": "an error inside a stream that had begun with status 200",
    "truncated": "the stream ended without [DONE]",
    "empty": "a complete stream without any content",
    "short_output": "fewer tokens than asked for although end-of-text was to be ignored",
    "cutoff": "still running when the test ended; left out of every figure",
}
"""Error classes, in the order they are shown."""

WARMUP, MEASURED = "warmup", "measured"
P99_MIN = 100
"""Below this many values a 99th percentile is one request's luck and is not given."""

PREVIEW = 200
"""Characters of prompt and answer that are kept."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Times in seconds; None where it did not happen or is not known.

    `due` is when an open loop planned it (a closed loop plans it when it sends it), `opened` when
    its connection was asked for. `stage` and `trial` count from 0, `turn` is its place in a
    conversation. `max_tokens` is how many tokens were asked for.
    `chunks` are the arrival times of the chunks with content, reasoning or a tool call; `first`
    and `last` are the first token's and the last token's, `first_output` the first that is not
    reasoning. `token_source` is "usage" (the server's), "tokenized" (after the run) or "unknown".
    """

    id: str
    phase: str
    due: float
    sent: float
    closed: float
    opened: float | None = None
    first: float | None = None
    first_output: float | None = None
    last: float | None = None
    chunks: tuple[float, ...] = ()
    n_first: int | None = None
    first_chars: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    token_source: str = "unknown"
    error: str | None = None
    detail: str = ""
    status: int | None = None
    finish_reason: str | None = None
    prompt: str = ""
    text: str = ""
    text_sha256: str = ""
    max_tokens: int | None = None
    stage: int = 0
    trial: int = 0
    turn: int = 0

    @property
    def ok(self) -> bool:
        return self.error is None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Sample:
        """Read a record of requests.jsonl; unknown fields are left out."""
        known = {f.name: record[f.name] for f in fields(cls) if f.name in record}
        return cls(**{**known, "chunks": tuple(known.get("chunks", ()))})

    def shifted(self, origin: float) -> Sample:
        """The same request with every time counted from `origin`."""
        moved: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else round(value - origin, 6)
            for name in ("due", "opened", "sent", "closed", "first", "first_output", "last")
        }
        return replace(self, **moved, chunks=tuple(round(t - origin, 6) for t in self.chunks))


def queue(sample: Sample) -> float:
    """Seconds from when a request was due until it was sent: the client's lag and the connect."""
    return sample.sent - sample.due


def lag(sample: Sample) -> float | None:
    """Seconds the client itself was late: connection asked for - due."""
    return None if sample.opened is None else sample.opened - sample.due


def connect(sample: Sample) -> float | None:
    """Seconds it took to open the connection, before the clock of TTFT starts."""
    return None if sample.opened is None else sample.sent - sample.opened


def ttft(sample: Sample) -> float | None:
    """Time to first token, seconds: sent to the first chunk with content, not the role chunk."""
    return None if sample.first is None else sample.first - sample.sent


def ttfo(sample: Sample) -> float | None:
    """Time to first output, seconds: as TTFT, but reasoning does not count."""
    return None if sample.first_output is None else sample.first_output - sample.sent


def e2e(sample: Sample) -> float | None:
    """Whole request, seconds: sent to the last token."""
    return None if sample.last is None else sample.last - sample.sent


def e2e_from_schedule(sample: Sample) -> float | None:
    """Whole request, seconds, counted from when an open loop should have sent it."""
    return None if sample.last is None else sample.last - sample.due


def tpot(sample: Sample) -> float | None:
    """Time per output token, seconds: (last - first) / (N - n_first).

    `N` is the number of output tokens and `n_first` how many came in the first chunk. None where
    the tokens are unknown or all of them came at once.
    """
    if sample.first is None or sample.last is None:
        return None
    if sample.output_tokens is None or sample.n_first is None:
        return None
    later = sample.output_tokens - sample.n_first
    return (sample.last - sample.first) / later if later > 0 else None


def icl(sample: Sample) -> list[float]:
    """Inter-chunk latencies, seconds: the raw gaps, whatever number of tokens a chunk holds."""
    return [b - a for a, b in zip(sample.chunks, sample.chunks[1:], strict=False)]


def first_chunk_tokens(output_tokens: int, chunks: int, first_chars: int, chars: int) -> int:
    """How many of `output_tokens` came in the first of `chunks` chunks.

    Servers send a token a chunk, and one token more than chunks when the end-of-text token is
    counted. With fewer chunks than that, the tokens are shared out by characters.
    """
    if output_tokens <= chunks + 1 or chars == 0:
        return 1
    return min(output_tokens, max(1, round(output_tokens * first_chars / chars)))


def percentile(values: Sequence[float], p: float) -> float:
    """The p-th percentile (0 to 100), linear between the two nearest order statistics.

    Exact, over all values; the method numpy calls "linear". ValueError when there are none.
    """
    if not values:
        raise ValueError("no percentile of no values")
    ordered = sorted(values)
    position = (len(ordered) - 1) * p / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True)
class Summary:
    """Number, mean and percentiles of some values; p99 is None where n < 100."""

    n: int
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None


def summarize(values: Iterable[float | None], scale: float = 1.0) -> Summary:
    """Sum up the values that are not None, each multiplied by `scale` (1000 for s to ms)."""
    known = [value * scale for value in values if value is not None]
    if not known:
        return Summary(0)
    points = {f"p{p}": round(percentile(known, p), 3) for p in (50, 90, 95, 99)}
    if len(known) < P99_MIN:
        points.pop("p99")
    return Summary(len(known), round(math.fsum(known) / len(known), 3), **points)


@dataclass(frozen=True)
class Limits:
    """What one request must keep to count as good; seconds, None for no limit."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def met_by(self, sample: Sample) -> bool:
        """Whether a request succeeded within every limit; an unknown figure misses its limit."""
        if not sample.ok:
            return False
        measured = ((self.ttft, ttft), (self.tpot, tpot), (self.e2e, e2e))
        return all(
            limit is None or ((value := figure(sample)) is not None and value <= limit)
            for limit, figure in measured
        )


def tokens_within(sample: Sample, start: float, end: float) -> float:
    """Output tokens of one request that arrived from `start` to `end`, seconds.

    The first chunk holds `n_first` tokens and the rest are spread evenly over the other arrivals
    (the last token's too, where it came without content). 0 where the tokens are unknown.
    """
    if not sample.chunks or not sample.output_tokens:
        return 0.0
    n_first = min(sample.n_first or 1, sample.output_tokens)
    later = list(sample.chunks[1:])
    if sample.last is not None and sample.last > sample.chunks[-1]:
        later.append(sample.last)
    if not later:
        n_first = sample.output_tokens
    inside = n_first if start <= sample.chunks[0] < end else 0
    if not later:
        return float(inside)
    each = (sample.output_tokens - n_first) / len(later)
    return inside + each * sum(start <= t < end for t in later)


def in_flight(samples: Iterable[Sample], start: float, end: float) -> float:
    """Mean number of requests under way from `start` to `end`, seconds."""
    if end <= start:
        return 0.0
    busy = (min(s.closed, end) - max(s.sent, start) for s in samples)
    return math.fsum(seconds for seconds in busy if seconds > 0) / (end - start)


_REPEATED = re.compile(r"(.{1,24}?)\1{7,}.{0,24}", re.DOTALL)


def is_degenerate(text: str) -> bool:
    """Whether an answer is blank or one piece of text over and over ("RAMRAMRAM…")."""
    bare = text.strip()
    return not bare or _REPEATED.fullmatch(bare) is not None
