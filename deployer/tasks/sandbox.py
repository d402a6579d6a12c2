"""Run generated code where it can do no harm: a child of its own that may only compute.

`workers/run_program.py` says how it is confined. Where the kernel offers no seccomp filter the
code is not run at all. What a confined program still can do is claim success, if it searches the
memory of its own interpreter for the proof; that would be a false result, not a way out.
"""

from __future__ import annotations

import json
import secrets
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deployer import process
from deployer.errors import PlanError
from deployer.toolchains.worker import WORKERS

Verdict = Literal["passed", "failed", "timeout", "memory", "forbidden"]
CPU_SECONDS = 5
"""Processor time of one program; the clock on the wall may take `WALL_SECONDS`."""
WALL_SECONDS = 15.0
MEMORY_MB = 1024
"""Address space of one program, MiB, the interpreter's own (about 30) included."""


@dataclass(frozen=True)
class Ran:
    """How a program ended. `timeout` covers both clocks; `detail` is its error, "" if it passed."""

    verdict: Verdict
    detail: str
    seconds: float


@dataclass(frozen=True)
class Limits:
    """What a program may use: seconds of processor and wall clock, MiB of address space."""

    cpu_seconds: int = CPU_SECONDS
    wall_seconds: float = WALL_SECONDS
    memory_mb: int = MEMORY_MB


def run_program(program: str, limits: Limits = Limits()) -> Ran:
    """Run Python source as a script, confined; it passes if it ends without an exception.

    Raises PlanError, and runs nothing, where the system has no seccomp filter.
    """
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="deployer-program-") as folder:
        root = Path(folder)
        empty = root / "empty"
        empty.mkdir()
        request = {
            "program": program,
            "word": word,
            "cpu_seconds": limits.cpu_seconds,
            "memory_mb": limits.memory_mb,
        }
        (root / "request.json").write_text(json.dumps(request), encoding="utf-8")
        script = WORKERS / "run_program.py"
        argv = (sys.executable, "-I", "-S", "-B", str(script), str(root / "request.json"))
        log = root / "output"
        started = time.monotonic()
        child = process.spawn(argv, env={}, log_path=log, cwd=empty)
        returncode = _wait(child, limits.wall_seconds)
        seconds = time.monotonic() - started
        said = _verdict(process.tail(log, 5), word)
    if said is None:
        return Ran(*_without_verdict(returncode, seconds, limits), seconds)
    if said.verdict is None:
        raise PlanError(
            f"generated code is not run here: {said.detail}",
            "Do it on Linux (x86_64 or aarch64) with seccomp, or leave humaneval out.",
        )
    return Ran(said.verdict, said.detail, seconds)


def _wait(child: process.Child, seconds: float) -> int | None:
    """The exit status, or None where the clock on the wall ran out; the group is gone after it."""
    try:
        return child.wait(seconds)
    except TimeoutError:
        return None
    finally:
        child.stop(grace=0.0)


@dataclass(frozen=True)
class _Said:
    """The script's own word; `verdict` is None where it could not protect us and ran nothing."""

    verdict: Verdict | None
    detail: str


def _verdict(output: str, word: str) -> _Said | None:
    """The line that our script wrote, or None where the program ended before it could."""
    for line in reversed(output.splitlines()):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and said.get("word") == word:
            protected = said["verdict"] != "unprotected"
            return _Said(said["verdict"] if protected else None, str(said["detail"]))
    return None


def _without_verdict(returncode: int | None, seconds: float, limits: Limits) -> tuple[Verdict, str]:
    """What a missing verdict means, from how the child ended."""
    if returncode is None:
        return "timeout", f"stopped after {limits.wall_seconds:g} s"
    # The kernel sends SIGXCPU at the limit and SIGKILL a second later to who does not heed it.
    used_up = returncode == -signal.SIGKILL and seconds >= limits.cpu_seconds
    if returncode == -signal.SIGXCPU or used_up:
        return "timeout", f"used up {limits.cpu_seconds} s of processor time"
    if returncode == -signal.SIGKILL:
        return "memory", "killed by the system, as it does when memory runs out"
    if returncode < 0:
        return "failed", f"ended by {signal.Signals(-returncode).name}"
    return "failed", f"left with exit status {returncode} before the checks were done"
