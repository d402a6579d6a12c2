"""Why an engine ended, told from its exit status and the last lines of its log."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from deployer.errors import ServerExited

SHOWN_LINES = 8
_TELLING = re.compile(r"\b[A-Z]\w*(?:Error|Exception): ")
_REPEATED = "See root cause above"
"""vLLM's parent process ends with a traceback of its own that says only this."""


@dataclass(frozen=True)
class Cause:
    """What ended the engine.

    `retry`: whether starting the same thing again makes sense; `limited`: only a few times, since
    it will likely end so again. `any_time`: not at a start alone. `ours`: we ended it.
    """

    name: str
    message: str
    hint: str
    retry: bool = False
    limited: bool = False
    any_time: bool = False
    ours: bool = False


_NAMED = (
    (
        r"couldn't bind HTTP server socket|address already in use",
        Cause(
            "port in use",
            "somebody else took its port",
            "Use another port (--set serve.port=0 takes a free one).",
            retry=True,
        ),
    ),
    (
        r"out of memory|(?:failed|unable) to allocate|bad_alloc|MemoryError|Cannot allocate memory|"
        r"Free memory on device .* is less than",
        Cause(
            "out of memory",
            "it ran out of memory",
            "Lower serve.parallel or serve.context, or use fewer bits per weight.",
            any_time=True,
        ),
    ),
    (
        r"larger than the available KV cache|No available memory for the cache blocks|"
        r"less than requested memory for kv",
        Cause(
            "cache too small",
            "its key-value cache is too small for one request of full context, or does not fit",
            "Lower serve.context, or change serve.vllm.kv_cache_gib.",
        ),
    ),
    (
        r"max_model_len.{0,60} is greater than",
        Cause(
            "context too long",
            "the model's positions do not reach as far as serve.context",
            "Lower serve.context to what the model was made for.",
        ),
    ),
    (
        r"quantization is currently not supported|Unknown quantization method|"
        r"is not supported for quantization|quantization method \S+ is not supported",
        Cause(
            "unsupported quantization",
            "it cannot run weights that are quantized this way on this device",
            "Choose another quantization.scheme or target.device; `deployer plan` checks both.",
        ),
    ),
    (
        r"LoRA rank \d+ is greater than",
        Cause(
            "adapter too large",
            "a LoRA adapter has a higher rank than the server was told to expect",
            "Set serve.extra_args: [--max-lora-rank, N] with the adapter's rank.",
        ),
    ),
    (
        r"error while loading shared libraries|cannot open shared object|(?:Import|ModuleNotFound)"
        r"Error|GLIBC\S* not found",
        Cause(
            "missing library",
            "a library it needs is missing",
            "`deployer doctor` checks the toolchains; `deployer toolchain remove` and a new start "
            "make them afresh.",
        ),
    ),
    (
        r"invalid argument|unrecognized arguments|error while handling argument|unknown argument|"
        r"argument .*: (?:invalid|expected)|takes exactly one API key",
        Cause("bad arguments", "it does not accept its arguments", "Check serve.extra_args."),
    ),
    (
        r"failed to load model|error loading model|model loading error|invalid magic|"
        r"transformers cannot load the model|"
        r"not within the file bounds|unknown model architecture|Failed to load model|"
        r"Value error, Expecting value: line 1|SafetensorError|Error while deserializing header|"
        r"Cannot find any model weights|"
        r"size mismatch|shape mismatch|Attempted to load weight|weights were not initialized|"
        r"There is no module or parameter named|KeyError: '\S*(?:weight|scales|qzeros|bias)\S*'|"
        r"weight_loader[\s\S]{0,600}AssertionError|Model architectures .* are not supported",
        Cause(
            "unusable model",
            "it could not load the model",
            "The file may be damaged (`deployer verify`), or this server may be too old for it.",
        ),
    ),
)
_UNKNOWN = Cause("unknown", "", "The log tells more.", retry=True)
_STARVED = Cause(
    "out of memory",
    "the kernel ended it, or another program here, for want of memory",
    "Lower serve.parallel or serve.context, or end what else takes memory. `dmesg` tells whom.",
)
HUNG = Cause(
    "hung",
    "it computed nothing, or nothing came of it, and it made no token when asked for one",
    "If this comes again, look at its log for the last request before the silence.",
    retry=True,
    ours=True,
)


NOT_READY = Cause("not ready", "it did not come up in time", "", retry=True, ours=True)


def over_limit(held: int, limit: int) -> Cause:
    """The cause for an engine that held more memory than its recipe allows (bytes)."""
    return Cause(
        "over its memory limit",
        f"it held {held / (1 << 30):.2f} GiB, and serve.memory_limit_gib is "
        f"{limit / (1 << 30):.4g}",
        "Raise serve.memory_limit_gib, or lower serve.parallel or serve.context.",
        retry=True,
        limited=True,
        ours=True,
    )


def explain(returncode: int, text: str, *, served: bool = False, starved: bool = False) -> Cause:
    """The cause of an end with `returncode` (negative: a signal) and these last log lines.

    `served`: it was ready, so its arguments, libraries and model were good, whatever its log says
    of some request. `starved`: meanwhile the kernel has ended somebody for want of memory.
    """
    for pattern, cause in _NAMED:
        if (cause.any_time or not served) and re.search(pattern, text, re.IGNORECASE):
            return cause
    if returncode == -signal.SIGKILL and starved:
        return _STARVED
    if returncode == -signal.SIGKILL:
        return Cause(
            "killed",
            "it was ended by SIGKILL, by somebody or by the kernel for want of memory",
            "`dmesg` tells whether memory ran out.",
            retry=True,
        )
    return _UNKNOWN


def exited(cause: Cause, returncode: int, log_path: Path, text: str) -> ServerExited:
    """The error for an engine that ended; its message ends with the log's last lines."""
    how = f"signal {-returncode}" if returncode < 0 else f"exit status {returncode}"
    what = "the server was ended" if cause.ours else f"the server ended ({how})"
    what += f": {cause.message}" if cause.message else ""
    lines = "\n".join(f"  | {line}" for line in _shown(text))
    return ServerExited(f"{what}\n{lines}" if lines else what, f"{cause.hint} Log: {log_path}")


def _shown(text: str) -> list[str]:
    """The last lines; before them the last that names an error, where it stands further up."""
    lines = text.splitlines()
    last = lines[-SHOWN_LINES:]
    telling = [
        line
        for line in lines
        if _TELLING.search(line) and _REPEATED not in line and " WARNING " not in line
    ]
    return [telling[-1], "...", *last] if telling and telling[-1] not in last else last
