"""Made-up requests of a closed loop and the result document made from them, for tests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from deployer.loadtest import judging, measure, validity
from deployer.loadtest.levels import level_of
from deployer.metrics import MEASURED, WARMUP, Sample
from deployer.recipe import LoadTest
from deployer.results import Host, LoadTestResult, Run, Trials, Workload

HOST = Host(
    cpu="Example CPU @ 2.50GHz",
    cores=2,
    threads=2,
    memory_bytes=24 << 30,
    system="Linux",
    load_before=(0.4, 0.3, 0.2),
)
TEXT = "Once upon a time a lamp stood by the river, and nobody knew who had lit it."


def sample(**changes: Any) -> Sample:
    """One good request: TTFT 100 ms, then a token every 10 ms, 11 tokens."""
    chunks = tuple(round(1.1 + 0.01 * i, 6) for i in range(11))
    return Sample(
        **{
            "id": "0-0-1",
            "phase": MEASURED,
            "due": 1.0,
            "sent": 1.0,
            "first": 1.1,
            "first_output": 1.1,
            "last": 1.2,
            "closed": 1.21,
            "chunks": chunks,
            "n_first": 1,
            "first_chars": 4,
            "prompt_tokens": 64,
            "cached_tokens": 8,
            "output_tokens": 11,
            "token_source": "usage",
            "status": 200,
            "finish_reason": "length",
            "prompt": "[0123abcd] Write a short story that uses these words: lamp, river.",
            "text": TEXT,
            **changes,
        }
    )


def closed_loop(
    users: int = 8, seconds: float = 23.0, warmup: float = 3.0, seed: int = 7, errors: int = 0
) -> list[Sample]:
    """Requests of `users` who each send the next one when the last has ended."""
    source = random.Random(seed)
    samples = []
    for user in range(users):
        now, number = user * warmup * 0.8 / users, 0
        while now < seconds:
            wait = 0.12 + source.expovariate(9.0)
            pace = max(0.012, source.gauss(0.036, 0.004))
            tokens = 64 if source.random() < 0.8 else source.randint(20, 63)
            chunks = tuple(round(now + wait + pace * i, 6) for i in range(tokens))
            samples.append(
                sample(
                    id=f"0-{user}-{number}", phase=MEASURED if now >= warmup else WARMUP,
                    due=now, sent=now, first=chunks[0], first_output=chunks[0], last=chunks[-1],
                    closed=chunks[-1] + 0.001, chunks=chunks, output_tokens=tokens,
                )
            )  # fmt: skip
            now, number = chunks[-1] + 0.002, number + 1
    samples.sort(key=lambda s: s.sent)
    for i in range(errors):
        broken = samples[len(samples) // 2 + i]
        samples[len(samples) // 2 + i] = sample(
            id=broken.id, sent=broken.sent, due=broken.sent, closed=broken.sent + 0.4, first=None,
            first_output=None, last=None, chunks=(), n_first=None, output_tokens=None,
            prompt_tokens=None, cached_tokens=None, token_source="unknown", text="",
            error="http_5xx" if i % 2 else "truncated", detail="no", status=500 if i % 2 else 200,
            finish_reason=None,
        )  # fmt: skip
    return samples


def result(
    samples: Sequence[Sample],
    workload: LoadTest | None = None,
    worker: measure.Worker | None = None,
    server_tokens: int | None = None,
    host: Host = HOST,
) -> LoadTestResult:
    """The document for samples of a run that began at 0."""
    work = workload or LoadTest(profile="concurrent", users=8, duration=20, warmup=3)
    workers = (worker or measure.Worker(0.0, 23.0, 1.5, 6.0),)
    level = level_of(work)
    span = measure.window(level, samples, workers)
    part = measure.Part(tuple(samples), span, workers)
    stage = measure.stage(level, [part], measure.limits_of(work.slo))
    return LoadTestResult(
        run=Run(
            id="20261122-120000-concurrent-abc123",
            started="2026-11-22T12:00:00+00:00",
            finished="2026-11-22T12:00:24+00:00",
            seed=1,
            git="0" * 40,
            versions={"deployer": "0.1.0", "locust": "2.47.0"},
        ),
        server={
            "endpoint": "http://127.0.0.1:8080",
            "model": "smollm2-q4_0",
            "engine": "llama.cpp",
            "version": "b6500",
            "quantization": "q4_0",
            "argv": ["llama-server", "--parallel", "8"],
        },
        host=host,
        workload=Workload(
            profile=work.profile,
            loop="closed",
            target={"users": work.users, "duration_s": work.duration},
            warmup=f"{work.warmup} s",
            prompt_tokens=work.prompt_tokens,
            output_tokens=work.output_tokens,
            input=measure.summary([s.prompt_tokens for s in samples]),
            output=measure.summary([s.output_tokens for s in samples]),
            ignore_eos=False,
            cache_mode="nonce",
            temperature=0.7,
            slo=work.slo.model_dump(),
        ),
        stages=(stage,),
        trials=Trials(mean=stage.throughput.output_tokens_per_s),
        gates=judging.gates(work, (stage,)),
        client=validity.client((stage,), [[part]], server_tokens),
        flags=validity.flags(samples, (stage,), host, work.profile),
        answers=measure.answers(samples),
    )
