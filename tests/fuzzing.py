"""Tries a parser with thousands of broken inputs, each in bounds, and counts what became of them.

A worker process takes one input after another: at most 5 seconds and 512 MiB each. Before an input
it notes its number in a file that the driver shares, so that an input that ends the worker is
known. Input N of a target depends on (seed, target, N) alone: an interrupted run goes on where it
stopped, and every input can be made again.
"""

from __future__ import annotations

import mmap
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from deployer.errors import DeployerError

SECONDS = 5
"""An input that takes longer is a hang."""
MEMORY = 512 << 20
"""Bytes of address space a worker may have, the interpreter included."""
UNTRIED, TAKEN, REFUSED, CRASHED, HUNG, DIED = range(6)
NAMES = ("untried", "taken", "refused", "crashed", "hung", "died")
FAILURES = (CRASHED, HUNG, DIED)
KEPT = 50
"""Failing inputs after which a worker gives up: the rest would say nothing new."""
_HEAD = struct.Struct("<QQQ")


class Wrong(AssertionError):
    """A parser took or did what it must not."""


@dataclass(frozen=True)
class Target:
    """A parser under test: how its inputs are made, and what is done with one of them.

    `check` gets the input and an empty folder of its own. It returns whether the input was taken;
    what is raised and is not one of `errors` is a crash. `count` is how many inputs a full run has.
    """

    name: str
    what: str
    make: Callable[[random.Random], bytes]
    check: Callable[[bytes, Path], bool]
    errors: tuple[type[Exception], ...] = (DeployerError,)
    count: int = 10_000

    def input(self, seed: int, number: int) -> bytes:
        return self.make(random.Random(f"{seed} {self.name} {number}"))


class Tally:
    """What became of each input of one target: a small file that driver and worker share."""

    def __init__(self, path: Path, count: int) -> None:
        size = _HEAD.size + count
        with path.open("ab") as stream:
            if stream.tell() < size:
                stream.truncate(size)
        self.file = path.open("r+b")
        self.map = mmap.mmap(self.file.fileno(), 0)
        self.count = count

    def __enter__(self) -> Tally:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.map.close()
        self.file.close()

    def begin(self, number: int) -> None:
        _, slowest, peak = _HEAD.unpack_from(self.map)
        _HEAD.pack_into(self.map, 0, number + 1, slowest, peak)

    def end(self, number: int, verdict: int, microseconds: int) -> None:
        begun, slowest, peak = _HEAD.unpack_from(self.map)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _HEAD.pack_into(self.map, 0, begun, max(slowest, microseconds), max(peak, used))
        self.set(number, verdict)

    def set(self, number: int, verdict: int) -> None:
        self.map[_HEAD.size + number] = verdict

    @property
    def begun(self) -> int:
        """The input begun last, -1 where none was."""
        return int(_HEAD.unpack_from(self.map)[0]) - 1

    @property
    def verdicts(self) -> bytes:
        return self.map[_HEAD.size : _HEAD.size + self.count]

    def untried(self) -> int | None:
        """The first input that was not tried yet."""
        at = self.verdicts.find(UNTRIED)
        return None if at < 0 else at

    def figures(self) -> dict[str, int | float]:
        """Counts; the slowest input in milliseconds; the most memory a worker held, in MiB."""
        _, slowest, peak = _HEAD.unpack_from(self.map)
        told = {name: self.verdicts.count(code) for code, name in enumerate(NAMES)}
        return {**told, "slowest_ms": round(slowest / 1000, 1), "peak_mib": round(peak / 1024, 1)}


def work(target: Target, seed: int, folder: Path, count: int) -> None:
    """Try what is untried, in this process; ends when all is, or after too many failures."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever it is doing
    with Tally(folder / f"{target.name}.tally", count) as tally:
        failures, driver = 0, os.getppid()
        while (number := tally.untried()) is not None and failures < KEPT:
            if os.getppid() != driver:
                return  # it was killed
            tally.begin(number)
            started = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            verdict, said = judge(target, target.input(seed, number))
            signal.setitimer(signal.ITIMER_REAL, 0)
            tally.end(number, verdict, round((time.monotonic() - started) * 1e6))
            if said:
                failures += 1
                keep(target, seed, number, folder, said)


def judge(target: Target, data: bytes) -> tuple[int, str]:
    """(verdict, traceback of a crash) of one input."""
    with tempfile.TemporaryDirectory(prefix="deployer-fuzz-") as scratch:
        try:
            return (TAKEN if target.check(data, Path(scratch)) else REFUSED), ""
        except target.errors as error:
            if isinstance(error, DeployerError) and not error.message:
                return CRASHED, f"{type(error).__name__} without a message"
            return REFUSED, ""
        except KeyboardInterrupt:
            raise
        except BaseException:
            return CRASHED, traceback.format_exc()


def keep(target: Target, seed: int, number: int, folder: Path, said: str) -> Path:
    """Save a failing input, and beside it what happened."""
    path = folder / f"{target.name}-{seed}-{number}.input"
    path.write_bytes(target.input(seed, number))
    path.with_suffix(".txt").write_text(said, encoding="utf-8")
    return path


def drive(
    target: Target,
    seed: int,
    folder: Path,
    count: int,
    worker: list[str],
    tell: Callable[[str], None],
) -> dict[str, int | float]:
    """Run workers until every input was tried; gives the figures.

    `worker` is the command of one that works on this target. One that ends by itself is counted
    against the input it had begun.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with Tally(folder / f"{target.name}.tally", count) as tally:
        while (before := tally.untried()) is not None:
            code = _watched(worker, tally, target.name, tell)
            if (at := tally.untried()) is None:
                break
            if code == 0:
                tell(f"{target.name}: gave up after {KEPT} failures")
                break
            if tally.begun != at:
                raise RuntimeError(f"the worker for {target.name} does not start: status {code}")
            hung = code == -signal.SIGALRM
            tally.set(at, HUNG if hung else DIED)
            kept = keep(target, seed, at, folder, f"the worker ended with status {code}\n")
            tell(f"{target.name}: input {at} ended its worker (status {code}): {kept}")
            assert before <= at
        return tally.figures()


def _watched(worker: list[str], tally: Tally, name: str, tell: Callable[[str], None]) -> int:
    """The exit status of a worker; tells how far it is every ten seconds."""
    with subprocess.Popen(worker, stdout=sys.stderr, env=_environment()) as running:
        while True:
            try:
                return running.wait(10)
            except subprocess.TimeoutExpired:
                done = tally.count - tally.verdicts.count(UNTRIED)
                tell(f"{name}: {done} of {tally.count}")
            except BaseException:
                running.kill()
                raise


def _environment() -> Mapping[str, str]:
    # Memory that is freed goes back, and threads have no arenas of their own: what is measured is
    # what the input took.
    return {**os.environ, "MALLOC_ARENA_MAX": "1", "PYTHONHASHSEED": "0"}
