"""The only module that starts programs: explicit environment, log file, group kill.

Every child gets an environment that was computed for it, a log file for its output, a process
group of its own, and, on Linux, a signal from the kernel should its parent die first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deployer.errors import CommandError

_PR_SET_PDEATHSIG = 1
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237, "riscv64": 237}.get(platform.machine())
"""Number of the system call; the C library has no function for it."""
_MPOL_BIND = 2
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_HOSTILE = frozenset(
    {
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "PYTHONOPTIMIZE",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "LD_PRELOAD",
        "MAKEFLAGS",
        "MAKELEVEL",
        "MFLAGS",
    }
)
_DEFAULTS = {"GOMP_SPINCOUNT": "10000"}
"""OpenMP threads that wait for each other spin. Where another program wants the same cores, the
default of several milliseconds makes llama.cpp several times slower than this; on a machine of
its own no difference was seen. What the user sets wins."""
TAIL_LINES = 20


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would leak our Python into a child, plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if name not in _HOSTILE}
    return {**_DEFAULTS, **kept, **(extra or {})}


def which(program: str) -> Path | None:
    """The path of an installed program, or None."""
    found = shutil.which(program)
    return Path(found) if found else None


def tail(log_path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, "" where there is none; reads at most its last 64 KiB."""
    try:
        with log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - 65536))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


@dataclass
class Child:
    """A running program; `stop` ends it and everything it started."""

    argv: tuple[str, ...]
    log_path: Path
    popen: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.popen.pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        return self.popen.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status; raises TimeoutError after `timeout` seconds."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired as expired:
            raise TimeoutError(f"{self.argv[0]} still runs after {timeout} s") from expired

    def signal(self, number: int) -> None:
        """Send a signal to the program alone; nothing happens when it is gone."""
        if self.poll() is None:
            self.popen.send_signal(number)

    def stop(self, grace: float = 10.0) -> int:
        """SIGTERM the program, wait `grace` seconds, then SIGKILL its whole group."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            self.wait(grace)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return self.wait()


def _before_exec(
    outlive_us: bool, cpus: Sequence[int], memory_node: int | None
) -> Callable[[], None] | None:
    """What a child does between fork and exec; all it needs is made beforehand."""
    if outlive_us and not cpus and memory_node is None:
        return None
    policy = None if memory_node is None else _bind_memory_to(memory_node)

    def prepare() -> None:
        if _LIBC and not outlive_us:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if cpus:
            os.sched_setaffinity(0, cpus)
        if policy and (_LIBC is None or _LIBC.syscall(*policy) != 0):
            raise OSError("no memory policy")

    return prepare


def _bind_memory_to(node: int) -> tuple[object, ...]:
    """The arguments of the system call that takes all memory of a process from one NUMA node."""
    if _SET_MEMPOLICY is None:
        return (ctypes.c_long(-1),)  # no system call, so that it fails
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    nodes = (ctypes.c_ulong * (node // bits + 1))()
    nodes[-1] = 1 << node % bits
    told = len(nodes) * bits + 1  # the kernel reads one bit fewer
    return (ctypes.c_long(_SET_MEMPOLICY), ctypes.c_long(_MPOL_BIND), nodes, ctypes.c_ulong(told))


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log_path: Path,
    cwd: Path | None = None,
    outlive_us: bool = False,
    stdout: int | IO[bytes] | None = None,
    cpus: Sequence[int] = (),
    memory_node: int | None = None,
    descriptors: Sequence[int] = (),
) -> Child:
    """Start a program in a session of its own, its output appended to `log_path`.

    With `outlive_us` it goes on when this process ends; else the kernel kills it when the thread
    that started it ends. It and all it starts run on `cpus` alone (empty: wherever we may) and
    take memory from the NUMA node `memory_node` alone. It inherits the open files `descriptors`
    under their numbers. Raises CommandError where the program cannot be started at all.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        try:
            popen = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log if stdout is None else stdout,
                stderr=log,
                start_new_session=True,
                pass_fds=tuple(descriptors),
                preexec_fn=_before_exec(outlive_us, cpus, memory_node),
            )
        except subprocess.SubprocessError as error:  # what it is, the child cannot tell
            raise CommandError(
                f"cannot start {argv[0]} on the CPUs and the NUMA node it is meant for",
                "Leave serve.cores and serve.numa_node out; a container may forbid memory policies "
                "(`docker run --cap-add SYS_NICE` allows them).",
                argv=argv,
                log_path=log_path,
            ) from error
        except OSError as error:
            raise CommandError(
                f"cannot start {argv[0]}: {error.strerror or error}",
                "Check that it is installed and may be executed.",
                argv=argv,
                log_path=log_path,
            ) from error
    return Child(tuple(argv), log_path, popen)


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log_path: Path,
    cwd: Path | None = None,
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
    check: bool = True,
) -> int:
    """Run a program to its end and give its exit status.

    Output goes to `log_path`; `on_line` sees each line of standard output as it comes (the
    program's standard error goes to the log alone). Raises CommandError, with the log's tail,
    when it fails (unless `check` is false), cannot be started or takes over `timeout` seconds.
    """
    piped = subprocess.PIPE if on_line else None
    child = spawn(argv, env=env, log_path=log_path, cwd=cwd, stdout=piped)
    killer = threading.Timer(timeout, child.stop, kwargs={"grace": 2.0}) if timeout else None
    started = time.monotonic()
    try:
        if killer:
            killer.daemon = True
            killer.start()
        if on_line and child.popen.stdout:
            _copy_lines(child.popen.stdout, log_path, on_line)
        returncode = child.wait()
    finally:
        if killer:
            killer.cancel()
        child.stop(grace=2.0)
    if timeout and time.monotonic() - started >= timeout:
        message = f"{_name(argv)} took longer than {timeout:.0f} s"
        raise _failure(message, argv, returncode, log_path)
    if check and returncode != 0:
        raise _failure(f"{_name(argv)} {_how(returncode)}", argv, returncode, log_path)
    return returncode


def _copy_lines(stream: IO[bytes], log_path: Path, on_line: Callable[[str], None]) -> None:
    with stream, log_path.open("ab") as log:
        for raw in stream:
            log.write(raw)
            log.flush()
            on_line(raw.decode("utf-8", "replace").rstrip("\n"))


def _name(argv: Sequence[str]) -> str:
    return Path(argv[0]).name


def _how(returncode: int) -> str:
    if returncode >= 0:
        return f"failed with exit status {returncode}"
    name = signal.Signals(-returncode).name
    note = " (out of memory?)" if name == "SIGKILL" else ""
    return f"was ended by {name}{note}"


def _failure(message: str, argv: Sequence[str], returncode: int, log_path: Path) -> CommandError:
    return CommandError(
        message,
        f"The whole log is in {log_path}.",
        argv=argv,
        returncode=returncode,
        log_path=log_path,
        tail=tail(log_path),
    )
