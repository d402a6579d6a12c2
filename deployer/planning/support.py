"""Which quantized weights vLLM loads on which device: one literal table, and what else it refuses.

From the sources of the pinned vLLM 0.32.0 and its table of supported hardware
(docs/features/quantization/README.md). Compute capabilities are those of `get_min_capability` of
auto_awq.py and of the schemes of compressed_tensors, and of the kernels that do the work
(kernels/linear/mixed_precision: Marlin from 7.5; on a CPU CPUWNA16LinearKernel, which knows 4 bits
only). The GPU wheel itself needs 7.5. bitsandbytes has become a plug-in for GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deployer.errors import PlanError
from deployer.machine import Gpu
from deployer.planning.shape import ModelShape
from deployer.recipe import Recipe

Capability = tuple[int, int]
LEAST_CAPABILITY: Capability = (7, 5)
BFLOAT16_CAPABILITY: Capability = (8, 0)
FP8_CACHE_CAPABILITY: Capability = (8, 9)
"""What vLLM's Triton attention asks for; a GPU below it has no attention for such a cache."""


@dataclass(frozen=True)
class Support:
    """Where weights can be loaded: on a CPU or not, on GPUs of at least `capability`.

    `groups` are the group sizes that the kernels on a GPU know, None where any will do or there
    are no groups; on a CPU every even one can be.
    """

    cpu: bool
    capability: Capability
    groups: tuple[int, ...] | None = None


_MARLIN = (-1, 32, 64, 128)
_MARLIN_OR_TRITON = (*_MARLIN, 256)
SUPPORT: dict[tuple[str, str | None], Support] = {
    ("none", None): Support(True, LEAST_CAPABILITY),
    ("awq", "w4a16"): Support(True, (7, 5), _MARLIN_OR_TRITON),
    ("gptq", "w4a16"): Support(True, (7, 5), _MARLIN_OR_TRITON),
    ("gptq", "w8a16"): Support(False, (7, 5), _MARLIN),
    ("compressed-tensors", "w4a16"): Support(True, (7, 5), _MARLIN_OR_TRITON),
    ("compressed-tensors", "w8a16"): Support(False, (7, 5), _MARLIN),
    ("compressed-tensors", "w8a8"): Support(True, (7, 5)),
    ("bitsandbytes", "nf4"): Support(False, (7, 5)),
    ("bitsandbytes", "int8"): Support(False, (7, 5)),
}
"""(format, scheme) -> where vLLM loads it. AWQ made by llm-compressor is compressed-tensors."""


def check_support(recipe: Recipe, weights_format: str, device: str) -> None:
    """vLLM loads what this recipe makes on `device` (cpu or cuda); raises PlanError with a way out.

    `weights_format` is the quantizer's (awq, gptq, compressed-tensors); "none" and "bitsandbytes"
    stand for 16-bit weights. Other engines are asked nothing: what they cannot load is no recipe.
    """
    if recipe.target.engine != "vllm":
        return
    wanted = recipe.quantization
    support = SUPPORT.get((weights_format, wanted.scheme))
    if support is None:
        raise PlanError(
            f"vLLM loads no {wanted.scheme} weights in the format {weights_format}",
            f"It loads {', '.join(_named(*key) for key in SUPPORT)}.",
        )
    if device == "cpu" and not support.cpu:
        raise PlanError(
            f"vLLM cannot run {_named(weights_format, wanted.scheme)} weights on a CPU",
            f"On a CPU it runs {_on_a_cpu()}; or set target.device: cuda for a machine with an "
            "NVIDIA GPU.",
        )
    _check_knobs(recipe, weights_format)
    _check_groups(recipe, support, device)


def check_context(recipe: Recipe, shape: ModelShape) -> None:
    """serve.context is no longer than the model can read; vLLM refuses it when it starts."""
    if recipe.target.engine != "llama.cpp" and recipe.serve.context > shape.context:
        raise PlanError(
            f"serve.context is {recipe.serve.context:,} tokens, and the model was made for "
            f"{shape.context:,}",
            f"--set serve.context={shape.context}",
        )


def check_gpus(recipe: Recipe, weights_format: str, gpus: Sequence[Gpu]) -> None:
    """This machine's GPUs, those the server will use, can carry the recipe out.

    There are as many as tensor_parallel x pipeline_parallel asks for, and each has the compute
    capability; raises PlanError that names the GPU. Call it only where there is a GPU.
    """
    if recipe.target.engine != "vllm":
        return
    vllm = recipe.serve.vllm
    count = vllm.tensor_parallel * vllm.pipeline_parallel
    if count > len(gpus):
        raise PlanError(
            f"serve.vllm asks for {vllm.tensor_parallel} x {vllm.pipeline_parallel} GPUs, and this "
            f"machine shows {len(gpus)}",
            "Set tensor_parallel and pipeline_parallel so that their product is at most "
            f"{len(gpus)}.",
        )
    for gpu in gpus[:count]:
        _check_gpu(recipe, weights_format, gpu)


def _check_gpu(recipe: Recipe, weights_format: str, gpu: Gpu) -> None:
    wanted, vllm = recipe.quantization, recipe.serve.vllm
    support = SUPPORT.get((weights_format, wanted.scheme), SUPPORT["none", None])
    needs = [(support.capability, _named(weights_format, wanted.scheme) + " weights")]
    if vllm.dtype == "bfloat16":
        needs.append((BFLOAT16_CAPABILITY, "dtype bfloat16"))
    if vllm.kv_cache_dtype.startswith("fp8"):
        needs.append((FP8_CACHE_CAPABILITY, f"kv_cache_dtype {vllm.kv_cache_dtype}"))
    for least, what in needs:
        if gpu.compute_capability < least:
            raise PlanError(
                f"{what} need compute capability {_written(least)}, and {gpu.name} has "
                f"{gpu.capability}",
                _way_out(what, gpu),
            )


def _way_out(what: str, gpu: Gpu) -> str:
    if gpu.compute_capability < LEAST_CAPABILITY:
        return "vLLM does not run on this GPU: set target.device: cpu, or target.engine: llama.cpp."
    if what.startswith("dtype"):
        return "Set serve.vllm.dtype: float16."
    return "Leave serve.vllm.kv_cache_dtype out."


def _check_knobs(recipe: Recipe, weights_format: str) -> None:
    """What can be quantized but vLLM then refuses to load."""
    knobs, vllm = recipe.quantization.knobs, recipe.serve.vllm
    if weights_format == "gptq" and knobs.get("desc_act") and knobs.get("group_size") != -1:
        raise PlanError(
            "vLLM no longer loads GPTQ weights with desc_act and groups",
            "Leave quantization.desc_act out, or set quantization.tool: llm-compressor.",
        )
    if weights_format == "gptq" and not knobs.get("sym", True):
        raise PlanError(
            "vLLM loads weights of the format gptq only when they are symmetric",
            "Leave quantization.sym out, or set quantization.tool: llm-compressor.",
        )
    if recipe.quantization.scheme == "w8a16" and not knobs.get("sym", True):
        raise PlanError(
            "vLLM has no kernel for asymmetric w8a16 weights", "Leave quantization.sym out."
        )
    if weights_format in ("awq", "gptq") and vllm.dtype == "float32":
        raise PlanError(
            f"vLLM runs {weights_format} weights in bfloat16 or float16, not in float32",
            "Leave serve.vllm.dtype out.",
        )


def _check_groups(recipe: Recipe, support: Support, device: str) -> None:
    size = recipe.quantization.knobs.get("group_size")
    if size is None or support.groups is None or size == -1:
        return
    if device == "cuda" and size not in support.groups:
        known = ", ".join(str(known) for known in support.groups)
        raise PlanError(
            f"vLLM has no kernel for {recipe.quantization.scheme} with groups of {size} on a GPU",
            f"It knows {known} (-1: all of a row); set quantization.group_size.",
        )
    if device == "cpu" and size % 2:
        raise PlanError(
            f"vLLM needs groups of an even size on a CPU, not of {size}",
            "Set quantization.group_size to 32, 64 or 128.",
        )


def _named(weights_format: str, scheme: str | None) -> str:
    if weights_format == "none":
        return "16-bit"
    return f"{weights_format} {scheme}"


def _on_a_cpu() -> str:
    """The schemes that a CPU runs, in the recipe's words."""
    schemes = dict.fromkeys(scheme for (_, scheme), row in SUPPORT.items() if row.cpu)
    words = [scheme or "16-bit weights" for scheme in schemes]
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _written(capability: Capability) -> str:
    return ".".join(map(str, capability))
