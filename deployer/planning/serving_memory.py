"""What a server will hold: weights, the key-value cache, activations, and the process itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deployer.engines import Facts, Memory, engine_named
from deployer.planning.estimate import MemoryEstimate, Part, weights_part
from deployer.planning.groups import shares_evenly
from deployer.planning.plan import Machine
from deployer.planning.serving import planned_model
from deployer.planning.shape import ModelShape
from deployer.recipe import Quantization, Recipe

GIB = 1 << 30
VLLM_GPU_PROCESS = 3 * GIB // 2
"""CUDA context, captured graphs and libraries on each GPU: a rule of thumb, not measured here."""
BATCHED_TOKENS = 2048
"""vLLM's default for tokens per step on all but the largest GPUs."""
_FLOAT32 = 4
_CONTEXT_STEP = 256
_GPU_COUNTS = (2, 4, 8, 16)
Fits = Callable[[Recipe], bool]


def serving_memory(
    recipe: Recipe,
    shape: ModelShape | None,
    machine: Machine,
    device: str,
    size_bytes: int | None = None,
) -> MemoryEstimate | None:
    """What the server takes of the memory it computes in; None where nothing is known.

    `size_bytes` is the size of the source's weights; it counts for llama.cpp, and where the shape
    is not known. Without a shape the key-value cache is left out. On a GPU vLLM fills what is left
    with cache, so only that of one request of full context is needed; a note tells how many have
    room.
    """
    vllm = recipe.target.engine == "vllm"
    wide = _FLOAT32 if _is_wide(recipe) else 2
    weights = weights_part(recipe.quantization, shape, size_bytes, wide)
    if weights is None:
        return None
    if vllm and device == "cuda":
        return _on_gpus(recipe, shape, machine, weights)
    if recipe.target.engine == "transformers" and device == "cuda":
        return _on_one_gpu(recipe, shape, machine, weights)
    parts = _held(recipe, shape, device, weights)
    if device == "cuda":
        there = sum(gpu.memory_bytes for gpu in machine.gpus) or None
        return MemoryEstimate("serving", "the GPUs' memory", parts, there)
    return MemoryEstimate("serving", "this machine's memory", parts, machine.memory_bytes)


def _is_wide(recipe: Recipe) -> bool:
    """Whether weights that are not quantized, and the cache, have 32 bits."""
    if recipe.target.engine == "vllm":
        return recipe.serve.vllm.dtype == "float32"
    return recipe.target.engine == "transformers" and recipe.serve.transformers.dtype == "float32"


def _on_one_gpu(
    recipe: Recipe, shape: ModelShape | None, machine: Machine, weights: Part
) -> MemoryEstimate:
    """The engine transformers: one GPU, and the cache of the one request it computes."""
    parts = [weights, Part("process", VLLM_GPU_PROCESS, "CUDA context")]
    if shape:
        parts.append(_cache(recipe, shape, 1))
    there = machine.gpus[0].memory_bytes if machine.gpus else None
    return MemoryEstimate("serving", "the GPU's memory", tuple(parts), there)


def _held(recipe: Recipe, shape: ModelShape | None, device: str, weights: Part) -> tuple[Part, ...]:
    """Weights, cache and buffers, as the engine's adapter counts them for a bundle too."""
    held = engine_memory(recipe, shape, device, weights.size)
    parts = [weights]
    if shape:
        one = recipe.target.engine == "transformers"
        arithmetic = _cache(recipe, shape, 1 if one else recipe.serve.parallel).arithmetic
        parts.append(Part("cache", held.cache, arithmetic))
        if recipe.target.engine == "vllm":
            parts.append(_activations(recipe, shape, 1))
    return (*parts, Part("buffers", held.buffers, recipe.target.engine))


def engine_memory(
    recipe: Recipe, shape: ModelShape | None, device: str, weights_bytes: int
) -> Memory:
    """What the engine says it holds in this machine's memory for weights of that size."""
    model = planned_model(recipe, shape, device, weights_bytes)
    return engine_named(recipe.target.engine).memory(model, recipe.serve, Facts())


def serving_hint(
    recipe: Recipe,
    shape: ModelShape | None,
    machine: Machine,
    device: str,
    size_bytes: int | None = None,
) -> str:
    """One sentence of changes, each of which alone would make it fit."""

    def fits(changed: Recipe) -> bool:
        other = serving_memory(changed, shape, machine, device, size_bytes)
        return other is not None and other.fits

    ways = [
        *_smaller_cache(recipe, shape, device, fits),
        *_fewer_bits(recipe, fits),
        *_more_gpus(recipe, shape, device, fits),
    ]
    if ways:
        return f"It would fit with {', or with '.join(ways)}."
    return "Choose a scheme with fewer bits, or build on a larger machine and copy the bundle."


def _on_gpus(
    recipe: Recipe, shape: ModelShape | None, machine: Machine, weights: Part
) -> MemoryEstimate:
    vllm = recipe.serve.vllm
    count = vllm.tensor_parallel * vllm.pipeline_parallel
    used = machine.gpus[:count]
    there = (
        round(min(gpu.memory_bytes for gpu in used) * vllm.gpu_memory_utilization) if used else None
    )
    shared = f"{weights.arithmetic}, over {count} GPUs" if count > 1 else weights.arithmetic
    parts = [Part("weights", weights.size // count, shared)]
    if shape:
        parts += [_cache(recipe, shape, 1), _activations(recipe, shape, vllm.tensor_parallel)]
    parts.append(Part("process", VLLM_GPU_PROCESS, "CUDA context and graphs"))
    place = "the GPU's memory" if count == 1 else f"the memory of each of {count} GPUs"
    if there is not None:
        place += f" at gpu_memory_utilization {vllm.gpu_memory_utilization:g}"
    estimate = MemoryEstimate("serving", place, tuple(parts), there)
    return _with_room(estimate, recipe, shape)


def _with_room(
    estimate: MemoryEstimate, recipe: Recipe, shape: ModelShape | None
) -> MemoryEstimate:
    """Tell how many requests of full context the rest of the GPU's memory holds."""
    if shape is None or estimate.there is None or not estimate.fits:
        return estimate
    one = _cache(recipe, shape, 1).size
    room = 1 + (estimate.there - estimate.needed) // one
    if recipe.serve.vllm.kv_cache_gib or room >= recipe.serve.parallel:
        return estimate
    note = (
        f"the cache has room for {room} of {recipe.serve.parallel} requests of full context at "
        "once; longer ones wait"
    )
    return MemoryEstimate(estimate.purpose, estimate.place, estimate.parts, estimate.there, (note,))


def _cache(recipe: Recipe, shape: ModelShape, requests: int) -> Part:
    """The key-value cache of so many requests of full context, or of the size the recipe sets."""
    vllm, context = recipe.serve.vllm, recipe.serve.context
    if recipe.target.engine == "vllm" and vllm.kv_cache_gib:
        return Part("cache", round(vllm.kv_cache_gib * GIB), f"kv_cache_gib {vllm.kv_cache_gib:g}")
    per_token = cache_bytes_per_token(recipe, shape)
    slots = f"{requests} x " if requests > 1 else ""
    arithmetic = f"{slots}{context:,} tokens x {per_token / 1000:,.1f} kB"
    return Part("cache", requests * context * per_token, arithmetic)


def cache_bytes_per_token(recipe: Recipe, shape: ModelShape) -> int:
    """What a token takes in the key-value cache on one device: its type and its share counted."""
    times = 2.0 if _is_wide(recipe) else 1.0
    if recipe.target.engine != "vllm":
        return round(shape.kv_bytes_per_token * times)
    vllm = recipe.serve.vllm
    if vllm.kv_cache_dtype != "auto":
        times = 0.5
    # With more GPUs than key-value heads several of them hold the same head.
    share = min(vllm.tensor_parallel, shape.kv_heads) * vllm.pipeline_parallel
    return round(shape.kv_bytes_per_token * times / share)


def _activations(recipe: Recipe, shape: ModelShape, tensor_parallel: int) -> Part:
    """What one step computes with: a layer's values for every token of it, and the logits."""
    vllm = recipe.serve.vllm
    tokens = vllm.max_batched_tokens or BATCHED_TOKENS
    wide = _FLOAT32 if vllm.dtype == "float32" else 2
    values = 4 * shape.hidden + 2 * shape.intermediate // tensor_parallel
    logits = 2 * recipe.serve.parallel * shape.vocab * _FLOAT32
    arithmetic = (
        f"{tokens:,} tokens x {values:,} values, logits of {recipe.serve.parallel} requests"
    )
    return Part("activations", tokens * values * wide + logits, arithmetic)


def _smaller_cache(recipe: Recipe, shape: ModelShape | None, device: str, fits: Fits) -> list[str]:
    if shape is None:
        return []
    serve, ways = recipe.serve, []
    if serve.vllm.kv_cache_gib:
        sizes = [step / 2 for step in range(int(serve.vllm.kv_cache_gib * 2), 0, -1)]
        found = next((size for size in sizes if fits(with_vllm(recipe, kv_cache_gib=size))), None)
        return [] if found is None else [f"--set serve.vllm.kv_cache_gib={found:g}"]
    alone = device == "cuda" and recipe.target.engine == "vllm"
    if not (alone or recipe.target.engine == "transformers"):
        slots = _largest(serve.parallel, 1, lambda n: fits(_with_serve(recipe, parallel=n)))
        ways += [f"--set serve.parallel={slots}"] if slots else []
    steps = (serve.context - 1) // _CONTEXT_STEP
    found_steps = _largest(
        steps + 1, 1, lambda n: fits(_with_serve(recipe, context=n * _CONTEXT_STEP))
    )
    ways += [f"--set serve.context={found_steps * _CONTEXT_STEP}"] if found_steps else []
    return ways


def _fewer_bits(recipe: Recipe, fits: Fits) -> list[str]:
    if recipe.target.engine == "vllm":
        smaller = Quantization.model_validate({"method": "awq"})
        if recipe.quantization.scheme == "w4a16" or not fits(_with_weights(recipe, smaller)):
            return []
        return ["4 bits (quantization: {method: awq})"]
    if recipe.target.engine == "transformers":
        smaller = Quantization.model_validate({"method": "bitsandbytes", "scheme": "nf4"})
        fewer = recipe.quantization.scheme in (None, "int8", "float8")
        if not fewer or not fits(_with_weights(recipe, smaller)):
            return []
        return ["4 bits (quantization: {method: bitsandbytes, scheme: nf4})"]
    if recipe.quantization.method == "none":  # perhaps quantized already
        return []
    for scheme in ("q8_0", "q6_k", "q4_k_m", "q3_k_m", "q2_k"):
        smaller = Quantization.model_validate({"method": "gguf", "scheme": scheme})
        if scheme != recipe.quantization.scheme and fits(_with_weights(recipe, smaller)):
            return [f"fewer bits, for example --set quantization.scheme={scheme}"]
    return []


def _more_gpus(recipe: Recipe, shape: ModelShape | None, device: str, fits: Fits) -> list[str]:
    """Tensor parallelism over more GPUs of the same kind, also where this machine has fewer."""
    if device != "cuda" or recipe.target.engine != "vllm" or shape is None:
        return []
    for count in _GPU_COUNTS:
        more = count > recipe.serve.vllm.tensor_parallel
        if more and shares_evenly(shape, count) and fits(with_vllm(recipe, tensor_parallel=count)):
            return [f"{count} GPUs like this (serve.vllm.tensor_parallel: {count})"]
    return []


def _largest(above: int, least: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number in [least, above) that fits, where all smaller ones do as well."""
    low, high = least, above - 1
    if high < low or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _with_serve(recipe: Recipe, **fields: Any) -> Recipe:
    return recipe.model_copy(update={"serve": recipe.serve.model_copy(update=fields)})


def with_vllm(recipe: Recipe, **fields: Any) -> Recipe:
    """The recipe with other settings of serve.vllm."""
    return _with_serve(recipe, vllm=recipe.serve.vllm.model_copy(update=fields))


def _with_weights(recipe: Recipe, quantization: Quantization) -> Recipe:
    return recipe.model_copy(update={"quantization": quantization})
