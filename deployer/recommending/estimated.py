"""What a format would do on a GPU that is not here: from bandwidth, arithmetic and capacity alone.

Decoding reads all weights once a step, for all users together, and each user's key-value cache, so
    step = STEP_SECONDS + weights / (share x bandwidth)
           + users x tokens x cache / (share of 16 bits x bandwidth)
    TPOT = step;  one user's tokens per second = 1 / step;  TTFT = all users' prompts at once:
    TTFT = step + users x 2 x parameters x prompt / (share of its kind x peak arithmetic)
    E2E  = TTFT + (output - 1) x step;  output tokens per second = users x output / E2E
An engine that computes one request at a time reads one user's cache, and the last of the users
waits until all others have their answers. Everything that comes from here is an estimate and
labelled so. A machine with several GPUs counts as one with their sums, which leaves out what they
tell each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from deployer.comparison import Comparison, Estimate, Row, Size
from deployer.planning.serving_memory import VLLM_GPU_PROCESS
from deployer.recipe.environment import Environment, GpuKind
from deployer.recommending.reading import cache_bytes_per_token, weights_in_memory
from deployer.recommending.records import GIB, USABLE_MEMORY, Figure, Outlook

REACHED = ((12.0, 0.84, 0.25), (8.0, 0.64, 0.15), (0.0, 0.43, 0.12))
"""(bits per weight from here on, share of the peak bandwidth, share of the peak arithmetic).

What llama.cpp reached on an NVIDIA H100 when it decoded and when it read a prompt of 512 tokens,
by tests/bench/gpu_decode.py (docs/recommend.md has the table). vLLM was not measured.
"""
CACHE_BITS = 16.0
"""Bits of a value in the key-value cache, which decides how fast it is read."""
STEP_SECONDS = 0.0013
"""What a step took there however few weights it read: a model of 30 layers in 4 bits."""
ONE_AT_A_TIME = ("transformers",)
"""Engines that compute one request at a time; the others wait."""
MOST_USERS = 256
"""Requests under way at most, which is vLLM's default for most GPUs."""


@dataclass(frozen=True)
class Step:
    """Times with `users` under way, seconds, and the tokens per second of all."""

    users: int
    ttft: float
    tpot: float
    e2e: float
    output: float


@dataclass(frozen=True)
class Estimator:
    """One format on one environment's GPUs.

    `cache` is bytes of key-value cache per token; `alone` says that the engine computes one request
    at a time.
    """

    size: Size
    cache: float
    environment: Environment
    gpu: GpuKind
    alone: bool = False

    @property
    def tokens(self) -> int:
        """How long a user's text is at its end."""
        return self.environment.load.prompt_tokens + self.environment.load.output_tokens

    @property
    def count(self) -> int:
        return self.gpu.count

    @property
    def arithmetic(self) -> float:
        """The share of the peak arithmetic that prompts are taken to reach."""
        return reached(self.size.bits_per_weight)[1]

    @property
    def memory_there(self) -> float:
        return USABLE_MEMORY * self.gpu.memory_gib * GIB * self.count

    def memory(self, users: int) -> float:
        """Bytes of GPU memory with so many users under way."""
        together = 1 if self.alone else users
        held = weights_in_memory(self.size) + together * self.tokens * self.cache
        return VLLM_GPU_PROCESS * self.count + held

    def step(self, users: int) -> Step:
        load, bandwidth = self.environment.load, self.gpu.bandwidth_gb_s * 1e9 * self.count
        together = 1 if self.alone else users
        share, of_cache = reached(self.size.bits_per_weight)[0], reached(CACHE_BITS)[0]
        weights = weights_in_memory(self.size) / (share * bandwidth)
        cache = together * self.tokens * self.cache / (of_cache * bandwidth)
        tpot = STEP_SECONDS + weights + cache
        arithmetic = 2 * self.size.parameters * together * load.prompt_tokens
        ttft = tpot + arithmetic / (self.arithmetic * self.gpu.tflops * 1e12 * self.count)
        e2e = ttft + (load.output_tokens - 1) * tpot
        waiting = (users - together) * e2e
        ttft, e2e = ttft + waiting, e2e + waiting
        return Step(users, ttft, tpot, e2e, users * load.output_tokens / e2e)

    def keeps(self, step: Step) -> bool:
        """Whether a step keeps the objectives and has room."""
        slo = self.environment.slo
        limits = ((step.ttft, slo.ttft_p95_ms), (step.tpot, slo.tpot_p95_ms),
                  (step.e2e, slo.e2e_p95_ms))  # fmt: skip
        met = all(limit is None or 1000 * value <= limit for value, limit in limits)
        return met and self.memory(step.users) <= self.memory_there

    def expected(self) -> tuple[Step, Step]:
        """The step at the expected load, and the one at which the machine does the most.

        With users they are the same. With requests per second the first has as many users under
        way as answer them all, the second as many as the objectives and the memory bear.
        """
        load = self.environment.load
        if load.users:
            step = self.step(load.users)
            return step, step
        steps = [self.step(users) for users in range(1, MOST_USERS + 1)]
        bearable = [step for step in steps if self.keeps(step)] or steps[:1]
        most = max(bearable, key=lambda step: step.output)
        demand = (load.requests_per_s or 0.0) * load.output_tokens
        return next((step for step in steps if step.output >= demand), most), most


def reached(bits_per_weight: float) -> tuple[float, float]:
    """The shares of peak bandwidth and arithmetic that so many bits are taken to reach."""
    return next((read, computed) for bits, read, computed in REACHED if bits_per_weight >= bits)


def estimated_outlook(row: Row, comparison: Comparison, environment: Environment) -> Outlook | None:
    """The outlook of a measured format on the environment's GPU; None where its size is unknown."""
    if row.size is None or environment.gpu is None:
        return None
    cache = cache_bytes_per_token(comparison)
    alone = row.engine in ONE_AT_A_TIME
    estimator = Estimator(row.size, cache, environment, environment.gpu, alone)
    step, most = estimator.expected()
    how = _arithmetic(estimator, step, most)
    return Outlook(
        users=step.users,
        memory=_figure(estimator.memory(step.users), how["memory"]),
        memory_there=estimator.memory_there,
        ttft_p95_ms=_figure(1000 * step.ttft, how["ttft"]),
        tpot_p95_ms=_figure(1000 * step.tpot, how["tpot"]),
        e2e_p95_ms=_figure(1000 * step.e2e, how["e2e"]),
        output=_figure(most.output, how["output"]),
    )


def _arithmetic(estimator: Estimator, step: Step, most: Step) -> dict[str, str]:
    """The formulas of the figures with their numbers."""
    size, gpu, load = estimator.size, estimator.gpu, estimator.environment.load
    many = f" x {gpu.count}" if gpu.count > 1 else ""
    together = 1 if estimator.alone else step.users
    waiting = f" + {step.users - 1} requests before it" if estimator.alone else ""
    weights = f"{weights_in_memory(size) / 1e9:.3g} GB"
    held = f"{together} x {estimator.tokens} x {estimator.cache / 1e3:.3g} kB"
    fast = f"{gpu.bandwidth_gb_s:g} GB/s{many})"
    prompts = f"{together} x 2 x {size.parameters / 1e6:.4g} M x {load.prompt_tokens}"
    computes = f"({estimator.arithmetic:g} x {gpu.tflops:g} TFLOPS{many})"
    return {
        "memory": f"memory: {weights} + {held} + {VLLM_GPU_PROCESS / 1e9:.2g} GB{many} of process",
        "ttft": f"TTFT, ms: TPOT + {prompts} / {computes}{waiting}",
        "tpot": f"TPOT, ms: {1000 * STEP_SECONDS:g} ms + "
        f"{weights} / ({reached(size.bits_per_weight)[0]:g} x {fast} + "
        f"{held} / ({reached(CACHE_BITS)[0]:g} x {fast}",
        "e2e": f"E2E, ms: TTFT + {load.output_tokens - 1} x TPOT",
        "output": f"output tokens/s: {most.users} users x {load.output_tokens} tokens / "
        f"{most.e2e:.3g} s of their E2E",
    }


def _figure(value: float, how: str) -> Figure:
    return Figure(basis="estimated", value=Estimate(values=(value,), mean=value), how=how)
