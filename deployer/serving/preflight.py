"""What is checked before a server is started, each with the sentence the user gets."""

from __future__ import annotations

import math
from pathlib import Path

from deployer.artifacts import FOLDER, Bundle
from deployer.engines import Memory
from deployer.errors import PlanError, ServerError, UsageError
from deployer.progress import Progress
from deployer.recipe import Serve
from deployer.serving.listening import is_loopback, listen


def read_key(path: Path, progress: Progress) -> str:
    """The first API key of a key file; raises UsageError where no server could use the file."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(
            f"the API key file {path} cannot be read: {reason}",
            "serve.api_key_file names a file with one key a line.",
        ) from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UsageError(
            f"the API key file {path} holds no key", "Write one key a line; # starts a comment."
        )
    if any(key != key.strip() or not key.isascii() or not key.isprintable() for key in keys):
        raise UsageError(
            f"a key of {path} has spaces at its ends or characters no header can carry",
            "Write one key a line, in ASCII, with Unix line ends.",
        )
    if mode & 0o044:
        progress.warn(f"others on this machine can read {path}; run: chmod 600 {path}")
    return keys[0]


def check_exposure(host: str, has_key: bool) -> None:
    """Refuse to listen beyond this machine without an API key; raises UsageError."""
    if not has_key and not is_loopback(host):
        raise UsageError(
            f"serve.host {host} can be reached from other machines, and there is no API key",
            "Set serve.api_key_file, or serve.host to 127.0.0.1.",
        )


def take_port(host: str, port: int) -> int:
    """The port to listen on: `port` where it is free, any free one for 0; raises as `listen`.

    The engine binds it later, so this is a check and no promise.
    """
    with listen(host, port) as probe:
        return int(probe.getsockname()[1])


def check_memory(needed: Memory, serve: Serve, available: int, reserved: int = 0) -> None:
    """Refuse a server that cannot fit; raises PlanError with the arithmetic (bytes in).

    `reserved` is what others were promised, and no part of `available`.
    """
    if needed.total <= available:
        return
    where = "" if serve.numa_node is None else f" on NUMA node {serve.numa_node}"
    promised = f" ({_gib(reserved)} more are promised to servers beside it)" if reserved else ""
    raise PlanError(
        f"serving needs {_gib(needed.total)} of memory and {_gib(available)} are available{where}"
        f"{promised}: {_sum(needed, serve)}",
        _what_fits(needed, serve, available),
    )


def check_limit(needed: Memory, serve: Serve) -> None:
    """Refuse a server that would be ended at its own limit; raises PlanError."""
    limit = serve.memory_limit_gib
    if limit is None or needed.total <= limit * (1 << 30):
        return
    least = math.ceil(needed.total * 10 / (1 << 30)) / 10
    raise PlanError(
        f"serving needs {_gib(needed.total)} of memory and serve.memory_limit_gib is {limit:g}: "
        f"{_sum(needed, serve)}",
        f"Raise serve.memory_limit_gib to {least:g} or more, or lower serve.parallel or "
        "serve.context.",
    )


def _sum(needed: Memory, serve: Serve) -> str:
    return (
        f"weights {_gib(needed.weights)} + cache {_gib(needed.cache)} ({serve.parallel} slots of "
        f"{serve.context} tokens) + buffers {_gib(needed.buffers)}"
    )


def _what_fits(needed: Memory, serve: Serve, available: int) -> str:
    room = available - needed.weights - needed.buffers
    slots = room * serve.parallel // needed.cache if needed.cache and room > 0 else 0
    if slots >= 1 and serve.vllm.kv_cache_gib is not None:
        return f"With --set serve.vllm.kv_cache_gib={room * 10 // (1 << 30) / 10:g} it fits."
    if slots >= 1:
        return f"With --set serve.parallel={slots} it fits; a smaller serve.context helps as well."
    return "Free memory, or build a bundle with fewer bits per weight."


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"


def check_weights(bundle: Bundle) -> None:
    """The weights are there and as long as the manifest says; raises ServerError."""
    weights = bundle.manifest.weights
    if not bundle.weights.exists():
        raise _absent(bundle, weights)
    for entry in bundle.manifest.files:
        checkpoint = weights == FOLDER and entry.path.endswith((".safetensors", ".json"))
        if entry.path != weights and not checkpoint:
            continue
        path = bundle.root / entry.path
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _absent(bundle, entry.path) from error
        if entry.size != size:
            raise ServerError(
                f"{path} has {size} bytes, its manifest says {entry.size}: it is damaged",
                "Build it again with `deployer build`.",
            )


def _absent(bundle: Bundle, name: str) -> ServerError:
    return ServerError(
        f"the bundle {bundle.root} has no {name}", "Build it again with `deployer build`."
    )


def check_lora(serve: Serve) -> None:
    """Every LoRA adapter is a folder with its two files; raises UsageError."""
    for adapter in serve.vllm.lora:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (Path(adapter.path) / name).is_file():
                raise UsageError(
                    f"the LoRA adapter {adapter.name} has no {name} in {adapter.path}",
                    "serve.vllm.lora names the folder the adapter was saved to; relative to the "
                    "recipe.",
                )
