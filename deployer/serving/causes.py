"""Why an engine ended, told from its exit status and the last lines of its log."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from deployer.errors import ServerExited

TAIL_BYTES = 65536
SHOWN_LINES = 8
_TELLING = re.compile(r"\b[A-Z]\w*(?:Error|Exception): ")
_REPEATED = "See root cause above"
"""vLLM's parent process ends with a traceback of its own that says only this."""


@dataclass(frozen=True)
class Cause:
    """What ended the engine. `retry`: whether starting the same thing again makes sense."""

    name: str
    message: str
    hint: str
    retry: bool = False


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


def explain(returncode: int, text: str) -> Cause:
    """The cause of an end with `returncode` (negative: a signal) and these last log lines."""
    for pattern, cause in _NAMED:
        if re.search(pattern, text, re.IGNORECASE):
            return cause
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
    what = f"the server ended ({how})" + (f": {cause.message}" if cause.message else "")
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


def log_text(log_path: Path, start: int) -> str:
    """The end of a log, from byte `start` on at the earliest; at most 64 KiB."""
    try:
        with log_path.open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(start, size - TAIL_BYTES))
            return log.read().decode("utf-8", "replace")
    except OSError:
        return ""
