"""Whether an engine that was ready still lives. A saturated one is not a dead one.

An engine under load may not come to answer a request of ours within seconds. So it lives when its
counters move, when it computes, or when it answers and has nothing to do. What is stopped,
deadlocked or waits for nothing does none of this; then only a token of its own proves the
contrary. `Pulse` answers at once, for systemd; `Vitals` weighs, and may condemn an engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import psutil

from deployer.engine_metrics import EngineMetrics, read_engine_metrics
from deployer.serving.readiness import QUICK, Endpoint
from deployer.serving.spec import Patience

WORKING = 0.02
"""Processor time over time, of one core, below which an engine with requests does not compute."""
FAILED = 2
"""Questions in a row that an engine owes a token for before it counts as hung."""


@dataclass(frozen=True)
class Reading:
    """What an engine answered: whether /health is ok, and its metrics where it gave some."""

    answers: bool
    metrics: EngineMetrics | None = None

    @property
    def load(self) -> float | None:
        """Requests that run or wait; None where that is not told."""
        return self.metrics.load if self.metrics else None


def read(endpoint: Endpoint, timeout: float = QUICK) -> Reading:
    """Ask an engine how it is; what it does not answer within `timeout` seconds is absent."""
    try:
        with endpoint.client(timeout) as client:
            if client.get(endpoint.health or "/v1/models").status_code != 200:
                return Reading(answers=False)
            if endpoint.metrics is None:
                return Reading(answers=True)
            answer = client.get(endpoint.metrics)
    except httpx.HTTPError:
        return Reading(answers=False)
    told = answer.status_code == 200
    return Reading(answers=told, metrics=read_engine_metrics(answer.text) if told else None)


class Effort:
    """Whether a process and those it started compute, from one question to the next."""

    def __init__(self, pid: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._pid, self._clock = pid, clock
        self._asked, self._used = clock(), processor_seconds(pid)

    def works(self) -> bool:
        """Whether they have computed since this was last asked."""
        now, used = self._clock(), processor_seconds(self._pid)
        works = used - self._used > WORKING * (now - self._asked)
        self._asked, self._used = now, used
        return works


class Pulse:
    """Asks one engine, process `pid`, whether it lives."""

    def __init__(self, endpoint: Endpoint, pid: int) -> None:
        self._endpoint = endpoint
        self._effort = Effort(pid)

    def beats(self) -> bool:
        """Whether it answers and has nothing to do, or has computed since this was last asked."""
        if self._effort.works():
            return True
        reading = read(self._endpoint)
        return reading.answers and not reading.load


class Vitals:
    """Weighs the signs of life of an engine that is ready; no I/O of its own.

    The loop around it takes a reading, asks `owes_token`, puts the question if so, and tells what
    came of it by `proven` or `hung`.
    """

    def __init__(self, patience: Patience, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._proof = clock()
        self._failed = 0
        self._last: EngineMetrics | None = None

    def proven(self) -> None:
        """It has made a token."""
        self._proof = self._clock()
        self._failed = 0

    def owes_token(self, reading: Reading, works: bool) -> bool:
        """Whether the engine must make a token now to prove that it lives.

        An idle one from time to time. One that computes is believed, but not for ever where its
        own counters say that nothing comes of it. One that has requests and rests, or does not
        answer and rests, at once.
        """
        if self._moved(reading):
            self.proven()
            return False
        silent = self._clock() - self._proof
        if works:
            bound = self._patience.stuck_after if reading.load else self._patience.idle_probe
            owes = reading.metrics is not None and silent >= bound
        else:
            idle = reading.answers and not reading.load
            owes = not idle or silent >= self._patience.idle_probe
        if not owes:
            self._failed = 0
        return owes

    def hung(self, reading: Reading, worked: bool) -> bool:
        """Whether an engine is to be given up that made no token when it was asked.

        `reading` was taken after the question, `worked` tells of the time since.
        """
        if self._moved(reading):
            self.proven()
            return False
        stuck = self._clock() - self._proof >= self._patience.stuck_after
        if worked and not (stuck and reading.metrics is not None):
            return False
        self._failed += 1
        return self._failed >= FAILED

    def _moved(self, reading: Reading) -> bool:
        """Whether its counters moved since the reading before."""
        before = self._last
        if reading.metrics is None:
            return False
        self._last = reading.metrics
        return before is not None and before.progress != reading.metrics.progress


def processor_seconds(pid: int) -> float:
    """Processor time of a process and those it started, in seconds; 0 once it is gone."""
    total = 0.0
    try:
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            times = member.cpu_times()
            total += times.user + times.system
    except psutil.Error:
        pass
    return total
