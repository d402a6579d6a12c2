"""Why an engine ended, told from its exit status and the last lines of its log."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from deployer.errors import ServerExited

TAIL_BYTES = 16384
SHOWN_LINES = 8


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
        r"out of memory|(?:failed|unable) to allocate|bad_alloc|MemoryError|Cannot allocate memory",
        Cause(
            "out of memory",
            "it ran out of memory",
            "Lower serve.parallel or serve.context, or use fewer bits per weight.",
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
        r"not within the file bounds|unknown model architecture|Failed to load model",
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
    lines = "\n".join(f"  | {line}" for line in text.splitlines()[-SHOWN_LINES:])
    return ServerExited(f"{what}\n{lines}" if lines else what, f"{cause.hint} Log: {log_path}")


def log_text(log_path: Path, start: int) -> str:
    """The end of a log, from byte `start` on at the earliest; at most 16 KiB."""
    try:
        with log_path.open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(start, size - TAIL_BYTES))
            return log.read().decode("utf-8", "replace")
    except OSError:
        return ""
