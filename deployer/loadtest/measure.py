"""Raw requests -> the figures of a level of load. Pure: no clock, no file, no network.

A request belongs to the measurement when it was *sent* after the warm-up, or in an open loop *due*
after it; it may finish after the end. Throughput counts what *arrived* in the measured seconds,
whenever it was sent. A level that was repeated has a part for each trial; its figures are of all
parts together, and `Stage.trials` tells how they differ.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from deployer import metrics
from deployer.comparison import half_width
from deployer.loadtest.levels import Level
from deployer.metrics import ERRORS, MEASURED, Limits, Sample
from deployer.recipe import Slo
from deployer.results import (
    Answer,
    Goodput,
    Latency,
    Requests,
    Stage,
    Summary,
    Throughput,
    Tokens,
    Trials,
    Turn,
)

SATURATED_BELOW = 0.95
"""Goodput, and answered / sent, below which a rate is too much for the server."""
SATURATION_SLACK = 3
"""Requests that may be unanswered at the end whatever the share: a few are always under way."""


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


@dataclass(frozen=True)
class Part:
    """One trial of a level: its requests, its measured seconds, its processes.

    `planned` is how many requests an open loop had to send in the measured seconds.
    """

    samples: tuple[Sample, ...]
    span: Window
    workers: tuple[Worker, ...] = ()
    planned: int | None = None


def window(level: Level, samples: Sequence[Sample], workers: Sequence[Worker]) -> Window:
    """The measured seconds: after the warm-up until the end, or all measured requests (smoke)."""
    if level.requests:
        measured = [s for s in samples if s.phase == MEASURED]
        return Window(
            min((s.sent for s in measured), default=0.0),
            max((s.closed for s in measured), default=0.0),
        )
    start = max(worker.started for worker in workers) + level.warmup
    return Window(start, min(start + level.duration, *(w.stopping for w in workers)))


def stage(level: Level, parts: Sequence[Part], limits: Limits) -> Stage:
    """The figures of one level of load, all of its trials together."""
    whole = _stage(level, parts, limits)
    if len(parts) == 1:
        return whole
    each = [_stage(level, [part], limits) for part in parts]
    found = {name: _spread([figure(one) for one in each]) for name, figure in _REPEATED.items()}
    return whole.model_copy(update={"trials": {k: v for k, v in found.items() if v is not None}})


def _stage(level: Level, parts: Sequence[Part], limits: Limits) -> Stage:
    samples = [s for part in parts for s in part.samples]
    measured = [s for s in samples if s.phase == MEASURED]
    ok = [s for s in measured if s.ok]
    is_open = level.loop == "open"
    seconds = math.fsum(part.span.seconds for part in parts)
    throughput = _throughput(parts, seconds)
    goodput = _goodput(parts, seconds, limits)
    return Stage(
        name=level.name,
        target=level.target,
        achieved=throughput.requests_per_s if is_open else _under_way(parts, seconds),
        unit=level.unit,
        duration_s=round(seconds, 3),
        requests=_requests(samples, measured),
        tokens=_tokens(ok),
        throughput=throughput,
        latency_ms=_latency(ok, is_open),
        goodput=goodput,
        offered=round(len(measured) / seconds, 3) if is_open and seconds else None,
        saturated=_saturated(parts, goodput) if is_open else None,
        turns=_turns(ok),
    )


def _under_way(parts: Sequence[Part], seconds: float) -> float:
    if not seconds:
        return 0.0
    busy = (metrics.in_flight(p.samples, p.span.start, p.span.end) * p.span.seconds for p in parts)
    return round(math.fsum(busy) / seconds, 3)


def _saturated(parts: Sequence[Part], goodput: Goodput) -> bool:
    """Whether the server did not keep up: too few answered, or too few of them well.

    Fewer were answered than sent in the measured seconds by more than a twentieth (and by more
    than a few): the requests pile up.
    """
    sent = sum(s.phase == MEASURED for part in parts for s in part.samples)
    answered = sum(len(_finished_in(part.samples, part.span)) for part in parts)
    short = sent - answered
    piled_up = short > max((1 - SATURATED_BELOW) * sent, SATURATION_SLACK * len(parts))
    return piled_up or (goodput.share is not None and goodput.share < SATURATED_BELOW)


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


def _throughput(parts: Sequence[Part], seconds: float) -> Throughput:
    if not seconds:
        return Throughput(requests_per_s=0.0, output_tokens_per_s=None)
    answered = sum(len(_finished_in(part.samples, part.span)) for part in parts)
    known = [(s, p.span) for p in parts for s in p.samples if s.output_tokens is not None]
    tokens = sum(metrics.tokens_within(s, span.start, span.end) for s, span in known)
    return Throughput(
        requests_per_s=round(answered / seconds, 3),
        output_tokens_per_s=round(tokens / seconds, 3) if known else None,
    )


def summary(values: Sequence[float | None], scale: float = 1.0) -> Summary:
    """`metrics.summarize` as a record of the document."""
    return Summary(**asdict(metrics.summarize(values, scale)))


def _latency(ok: Sequence[Sample], is_open: bool) -> Latency:
    def of(figure: Callable[[Sample], float | None]) -> Summary:
        return summary([figure(s) for s in ok], 1000)

    return Latency(
        ttft=of(metrics.ttft),
        ttfo=of(metrics.ttfo),
        tpot=of(metrics.tpot),
        icl=summary([gap for s in ok for gap in metrics.icl(s)], 1000),
        e2e=of(metrics.e2e),
        e2e_from_schedule=of(metrics.e2e_from_schedule) if is_open else None,
        queue=of(metrics.queue) if is_open else None,
        connect=of(metrics.connect),
    )


def limits_of(slo: Slo) -> Limits:
    """What one request must keep, in seconds, from a recipe's objectives in milliseconds."""

    def seconds(limit: float | None) -> float | None:
        return None if limit is None else limit / 1000

    return Limits(seconds(slo.ttft_p95_ms), seconds(slo.tpot_p95_ms), seconds(slo.e2e_p95_ms))


def _goodput(parts: Sequence[Part], seconds: float, limits: Limits) -> Goodput:
    counted = [s for p in parts for s in p.samples if s.phase == MEASURED and s.error != "cutoff"]
    good = sum(limits.met_by(s) for s in counted)
    in_time = sum(
        len(
            _finished_in([s for s in p.samples if s.phase == MEASURED and limits.met_by(s)], p.span)
        )
        for p in parts
    )
    return Goodput(
        share=round(good / len(counted), 6) if counted else None,
        requests_per_s=round(in_time / seconds, 3) if seconds else 0.0,
        limits_ms={
            name: round(limit * 1000, 3)
            for name, limit in asdict(limits).items()
            if limit is not None
        },
    )


def _turns(ok: Sequence[Sample]) -> tuple[Turn, ...]:
    """The turns of conversations, where there is more than one."""
    numbers = sorted({s.turn for s in ok})
    return tuple(_turn(n, [s for s in ok if s.turn == n]) for n in numbers) if numbers[1:] else ()


def _turn(number: int, ok: Sequence[Sample]) -> Turn:
    tokens = _tokens(ok)
    known = tokens.input is not None and tokens.cached is not None and tokens.input > 0
    return Turn(
        turn=number,
        n=len(ok),
        ttft_p50_ms=summary([metrics.ttft(s) for s in ok], 1000).p50,
        input_tokens=None if tokens.input is None else round(tokens.input / len(ok), 1),
        cached_share=round((tokens.cached or 0) / (tokens.input or 1), 4) if known else None,
    )


_REPEATED: dict[str, Callable[[Stage], float | None]] = {
    "output_tokens_per_s": lambda stage: stage.throughput.output_tokens_per_s,
    "requests_per_s": lambda stage: stage.throughput.requests_per_s,
    "goodput": lambda stage: stage.goodput.share,
    "ttft_p50_ms": lambda stage: stage.latency_ms.ttft.p50,
    "ttft_p95_ms": lambda stage: stage.latency_ms.ttft.p95,
    "tpot_p50_ms": lambda stage: stage.latency_ms.tpot.p50,
    "tpot_p95_ms": lambda stage: stage.latency_ms.tpot.p95,
    "e2e_p50_ms": lambda stage: stage.latency_ms.e2e.p50,
    "e2e_p95_ms": lambda stage: stage.latency_ms.e2e.p95,
}
"""Figures whose spread over the trials is told."""


def _spread(values: Sequence[float | None]) -> Trials | None:
    """The spread of a figure over at least two trials; None where a trial has none."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or len(known) < 2:
        return None
    mean, sd, half = statistics.mean(known), statistics.stdev(known), half_width(known)
    return Trials(
        n=len(known),
        mean=round(mean, 6),
        sd=round(sd, 6),
        cv=round(sd / mean, 6) if mean else None,
        ci95=(round(mean - half, 6), round(mean + half, 6)),
    )


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
