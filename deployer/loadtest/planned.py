"""What to send, and when: a level of a workload -> the rows of `plan.jsonl`. Pure.

Due times are drawn before the load begins, so that nothing that happens during it can move them,
and the same seed plans the same load. The rows' fields are those of loadtests/plan.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from deployer.errors import UsageError
from deployer.loadtest.levels import Level
from deployer.loadtest.sources import BLOCK_TOKENS, MOST_ROWS, Traced
from deployer.recipe import LoadTest

LENGTHS = 1000
"""Rows that a closed loop goes round in when its lengths differ."""
LEAST_PROMPT = 8
POOL = 8
"""Prompts of a warm cache."""


@dataclass(frozen=True)
class Material:
    """What the plan is made of: words for tokens, the trace, the chats with their answers' tokens.

    `words` gives the words of a prompt of so many tokens, `plain_words` those of bare text.
    """

    words: Callable[[int], int]
    plain_words: Callable[[int], int]
    trace: tuple[Traced, ...] = ()
    chats: tuple[tuple[str, int], ...] = ()


def rows(
    level: Level, workload: LoadTest, material: Material, seed: object
) -> list[dict[str, Any]]:
    """The requests of a level, in the order they are due; times in seconds from its start."""
    if workload.profile == "replay":
        return [_replayed(one, material) for one in material.trace if one.due < level.seconds]
    lengths = _lengths(workload, material, random.Random(f"plan/{seed}"))
    if workload.cache == "warm":
        lengths = cycle(pool(workload, material))
    if level.loop == "open":
        dues = _due_times(level, workload, random.Random(f"arrivals/{seed}"))
        return [{"due": due, **row} for due, row in zip(dues, lengths, strict=False)]
    alike = not (workload.chats or workload.prompt_tokens_sd or workload.output_tokens_sd)
    return list(islice(lengths, 1 if alike else LENGTHS))


def pool(workload: LoadTest, material: Material) -> list[dict[str, Any]]:
    """The prompts of a warm cache: the same in every trial, sent again and again."""
    return list(islice(_lengths(workload, material, random.Random("pool")), POOL))


def measured_rows(level: Level, planned: Sequence[dict[str, Any]]) -> int:
    """How many rows of an open loop are due after the warm-up and before the end."""
    return sum(level.warmup <= row["due"] < level.seconds for row in planned)


def replay_level(level: Level, trace: Sequence[Traced]) -> Level:
    """The level with the mean rate of the trace; it ends a second after the last request."""
    last = trace[-1].due
    if last < level.warmup:
        raise UsageError(
            f"the trace ends after {last:g} s, before the warm-up of {level.warmup} s is over",
            "Use --set loadtest.warmup=0, or a longer trace.",
        )
    duration = min(level.duration, last - level.warmup + 1.0)
    inside = sum(level.warmup <= one.due < level.warmup + duration for one in trace)
    return replace(level, duration=duration, rate=round(inside / duration, 4))


def _due_times(level: Level, workload: LoadTest, source: random.Random) -> list[float]:
    """Absolute times: evenly, or with exponential gaps (a Poisson process)."""
    if level.rate * level.seconds > MOST_ROWS:
        raise UsageError(
            f"{level.rate:g} requests/s for {level.seconds:g} s are more than {MOST_ROWS:,}",
            "Lower the rate or the duration.",
        )
    if workload.profile == "constant":
        count = round(level.rate * level.seconds)
        return [round(number / level.rate, 6) for number in range(count)]
    dues, now = [], source.expovariate(level.rate)
    while now < level.seconds:
        dues.append(round(now, 6))
        now += source.expovariate(level.rate)
    return dues


def _lengths(
    workload: LoadTest, material: Material, source: random.Random
) -> Iterator[dict[str, Any]]:
    """Rows without due times, without end."""
    if material.chats:
        order = list(material.chats)
        source.shuffle(order)
        while True:
            yield from ({"words": 0, "tokens": tokens, "text": text} for text, tokens in order)
    while True:
        prompt = _around(source, workload.prompt_tokens, workload.prompt_tokens_sd, LEAST_PROMPT)
        output = _around(source, workload.output_tokens, workload.output_tokens_sd, 1)
        yield {"words": material.words(prompt), "tokens": output}


def _around(source: random.Random, mean: int, sd: int, least: int) -> int:
    """A normally distributed length; one below `least` becomes `least`."""
    return max(least, round(source.gauss(mean, sd))) if sd else mean


def _replayed(one: Traced, material: Material) -> dict[str, Any]:
    row: dict[str, Any] = {
        "due": one.due, "words": material.words(one.prompt_tokens), "tokens": one.output_tokens,
    }  # fmt: skip
    if one.blocks:
        row |= {"blocks": one.blocks, "block_words": material.plain_words(BLOCK_TOKENS)}
    return row
