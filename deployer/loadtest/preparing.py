"""What is learnt of a server and of the files before the load begins."""

from __future__ import annotations

import math
import runpy
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.loadtest import driver, planned, sources
from deployer.loadtest.endpoint import Endpoint, plain_words_for, words_for
from deployer.loadtest.planned import LENGTHS, POOL, Material
from deployer.progress import Progress
from deployer.recipe import LoadTest

SEED = 1
TEMPERATURE = 0.7
CALIBRATION_WORDS = (8, 40)


@dataclass(frozen=True)
class Prepared:
    """What Locust is told (loadtests/settings.py), and what its requests are made of."""

    known: Mapping[str, Any]
    material: Material
    source: str | None
    """The trace or the file of chats, by name and digest."""

    def of_run(self, number: int) -> dict[str, Any]:
        """What Locust is told for its run `number` from 0 on: each run has prompts of its own.

        A later stage of a sweep would else find its prompts in the server's prefix cache.
        """
        return {**self.known, "seed": SEED + number}


def prepare(target: Endpoint, workload: LoadTest, identity: str, progress: Progress) -> Prepared:
    """Check that the server answers real requests, and learn how long a prompt must be."""
    make = runpy.run_path(str(driver.locustfile().with_name("prompts.py")))["make"]
    with progress.step(f"Endpoint {target.url}") as step:
        model = target.model()
        step.update(note=model)
        measured = {
            words: target.prompt_tokens(model, make(words, SEED, secrets.token_hex(4)))
            for words in CALIBRATION_WORDS
        }
        tokens = {words: count for words, count in measured.items() if count is not None}
        material, source = _material(workload, tokens, target)
    known = {
        "run_id": identity,
        "endpoint": target.url,
        "model": model,
        "temperature": TEMPERATURE,
        **_settings(workload, material),
    }
    return Prepared(known, material, source)


def warm(target: Endpoint, workload: LoadTest, prepared: Prepared, progress: Progress) -> None:
    """Send every prompt of a warm cache's pool once, so that the server has seen it."""
    prompts = runpy.run_path(str(driver.locustfile().with_name("prompts.py")))
    rows = planned.pool(workload, prepared.material)
    with progress.step(f"Warm the cache with {len(rows)} prompts"):
        for index, row in enumerate(rows):
            prompt = prompts["of_pool"](
                index, row["words"], row.get("text", ""), prepared.known["run_id"]
            )
            target.prompt_tokens(prepared.known["model"], prompt)


def _settings(workload: LoadTest, material: Material) -> dict[str, Any]:
    """The settings that a profile needs beside its level of load."""
    profile = workload.profile
    return {
        "profile": profile,
        "ignore_eos": workload.ignore_eos,
        "pool": POOL if workload.cache == "warm" else 0,
        "turns": workload.turns if profile == "chat" else 1,
        "think_s": workload.think if profile == "chat" else 0.0,
        "prefix_words": material.plain_words(workload.prefix_tokens) if profile == "prefix" else 0,
    }


def _material(
    workload: LoadTest, measured: Mapping[int, int], target: Endpoint
) -> tuple[Material, str | None]:
    def words(tokens: int) -> int:
        return words_for(tokens, measured)

    def plain_words(tokens: int) -> int:
        return plain_words_for(tokens, measured)

    if workload.profile == "replay" and workload.trace:
        path = Path(workload.trace)
        return Material(words, plain_words, trace=sources.read_trace(path)), sources.described(path)
    if workload.chats and workload.profile not in ("chat", "prefix"):
        path = Path(workload.chats)
        count = _counter(target)
        chats = tuple((c.question, count(c.answer)) for c in sources.read_chats(path)[:LENGTHS])
        return Material(words, plain_words, chats=chats), sources.described(path)
    return Material(words, plain_words), None


def _counter(target: Endpoint) -> Callable[[str], int]:
    """Tokens of a text by the server's tokenizer; where it has none, by characters."""
    offered = target.count_tokens("one two three") is not None

    def count(text: str) -> int:
        tokens = target.count_tokens(text) if offered else None
        return max(1, tokens or math.ceil(len(text) / sources.CHARS_PER_TOKEN))

    return count
