"""What a format would do in an environment of the kind it was measured on.

Where cores, load and lengths are those of the comparison, its figures stand as they are. Where
not, they are multiplied by the factors below, and labelled as scaled. docs/recommend.md has the
formulas in one place.
"""

from __future__ import annotations

from dataclasses import dataclass

from deployer.comparison import Comparison, Estimate, Level, Row, Serving
from deployer.recipe.environment import Environment
from deployer.recommending.reading import cache_bytes_per_token, weights_in_memory
from deployer.recommending.records import GIB, USABLE_MEMORY, Basis, Figure, Outlook, number


def same_device(comparison: Comparison, environment: Environment) -> bool:
    """Whether the comparison was made on the environment's kind of device.

    On a CPU for a CPU; for a GPU on a GPU of that name. One that held GPU memory used the GPU.
    """
    on_gpu = any(row.serving and row.serving.peak_gpu_bytes for row in comparison.measured)
    if environment.gpu is None:
        return not on_gpu
    return on_gpu and any(environment.gpu.name in gpu for gpu in comparison.host.gpus)


def level_for(serving: Serving, environment: Environment) -> Level:
    """The measured level that answers for the environment's load: one user alone, or all."""
    return serving.single if environment.load.users == 1 else serving.loaded


@dataclass(frozen=True)
class Factors:
    """What the measured times of one format are multiplied by.

    `prefill` and `decode` are the time of a prompt and of a token there over here, `crowd` the
    users beyond those measured, `drawn` the share of the measured users that there will be;
    `request` is the time of a whole request there over here, `tokens` the tokens of an answer,
    `words` what makes them other than 1.
    """

    prefill: float
    decode: float
    request: float
    tokens: float
    crowd: float
    drawn: float
    words: tuple[str, ...]

    @property
    def output(self) -> float:
        """Of the output tokens per second: more tokens a request, over its longer time."""
        return self.tokens / self.request * self.drawn

    def basis(self, factor: float) -> Basis:
        """measured where nothing differs; with other users what stands does so as a bound."""
        return "measured" if factor == self.drawn == self.crowd == 1 else "scaled"


def measured_outlook(row: Row, comparison: Comparison, environment: Environment) -> Outlook | None:
    """The outlook from measured figures; None where a figure it needs was not measured."""
    serving, size = row.serving, row.size
    if serving is None or size is None:
        return None
    level = level_for(serving, environment)
    if not (level.ttft and level.tpot and level.e2e and level.output):
        return None
    cache = cache_bytes_per_token(comparison)
    weights = weights_in_memory(size)
    factors = _factors(level, weights, cache, comparison, environment)
    load = environment.load
    crowd = factors.crowd
    return Outlook(
        users=float(load.users or level.users),
        memory=_memory(serving, weights, cache, environment),
        memory_there=_memory_there(environment),
        ttft_p95_ms=_figure(level.ttft.p95, factors.prefill * crowd, factors, "TTFT p95, ms"),
        tpot_p95_ms=_figure(level.tpot.p95, factors.decode * crowd, factors, "TPOT p95, ms"),
        e2e_p95_ms=_figure(level.e2e.p95, factors.request * crowd, factors, "E2E p95, ms"),
        output=_figure(level.output, factors.output, factors, "output tokens/s"),
    )


def _factors(
    level: Level, weights: float, cache: float, comparison: Comparison, environment: Environment
) -> Factors:
    assert level.ttft and level.tpot
    load, asked, words = environment.load, comparison.workload, []
    slow = 1.0
    if environment.gpu is None and environment.cores != comparison.host.cores:
        slow = comparison.host.cores / environment.cores
        words.append(f"{comparison.host.cores} cores here / {environment.cores} there")
    prefill = slow * load.prompt_tokens / asked.prompt_tokens
    if load.prompt_tokens != asked.prompt_tokens:
        words.append(f"prompts of {load.prompt_tokens} / {asked.prompt_tokens} tokens")
    tokens = load.output_tokens / asked.output_tokens
    if tokens != 1:
        words.append(f"answers of {load.output_tokens} / {asked.output_tokens} tokens")
    users = load.users or level.users
    if users != level.users:
        words.append(f"{users} users / {level.users}")
    decode = slow
    least = _least_step_ms(weights, min(users, level.users), cache, environment)
    if least > level.tpot.p50.mean * slow:
        decode = least / level.tpot.p50.mean
        words.append(f"no token faster than its memory can be read, {least:.1f} ms")
    ttft, tpot = level.ttft.p50.mean, level.tpot.p50.mean
    here = ttft + (asked.output_tokens - 1) * tpot
    there = ttft * prefill + (load.output_tokens - 1) * tpot * decode
    crowd, drawn = max(1.0, users / level.users), min(1.0, users / level.users)
    return Factors(prefill, decode, there / here, tokens, crowd, drawn, tuple(words))


def _least_step_ms(weights: float, users: int, cache: float, environment: Environment) -> float:
    """The time a decode step needs to read its bytes from the environment's memory, milliseconds.

    The weights once for all users, and each user's cache.
    """
    if environment.gpu or environment.bandwidth_gb_s is None:
        return 0.0
    tokens = environment.load.prompt_tokens + environment.load.output_tokens
    read = weights + users * tokens * cache
    return read / (environment.bandwidth_gb_s * 1e9) * 1000


def _figure(measured: Estimate, factor: float, factors: Factors, what: str) -> Figure:
    basis, how = factors.basis(factor), f"{what}: {number(measured.mean)} measured"
    if basis == "scaled":
        how += f" x {factor:.3g} ({'; '.join(factors.words)})"
    return Figure(basis=basis, value=scaled(measured, factor), how=how)


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """The estimate times a positive factor, interval and all."""
    return Estimate(
        values=tuple(value * factor for value in estimate.values),
        mean=estimate.mean * factor,
        low=None if estimate.low is None else estimate.low * factor,
        high=None if estimate.high is None else estimate.high * factor,
    )


def _memory(serving: Serving, weights: float, cache: float, environment: Environment) -> Figure:
    """The measured peak, and the cache of what the environment asks for beyond what was there."""
    peak = serving.peak_rss_bytes if environment.gpu is None else serving.peak_gpu_bytes
    load = environment.load
    wanted = (load.users or serving.parallel) * (load.prompt_tokens + load.output_tokens)
    more = max(0, wanted - serving.context * serving.parallel) * cache
    if peak is None:
        held = weights + max(wanted, serving.context * serving.parallel) * cache
        return _plain("estimated", held, "memory: weights + cache; the peak was not measured")
    how = f"memory: peak of {peak.mean / 1e9:.3g} GB measured"
    if not more:
        return _plain("measured", peak.mean, how)
    return _plain("scaled", peak.mean + more, f"{how} + {more / 1e9:.3g} GB of cache")


def _plain(basis: Basis, value: float, how: str) -> Figure:
    return Figure(basis=basis, value=Estimate(values=(value,), mean=value), how=how)


def _memory_there(environment: Environment) -> float:
    gpu = environment.gpu
    gib = environment.memory_gib if gpu is None else gpu.memory_gib * gpu.count
    return USABLE_MEMORY * gib * GIB
