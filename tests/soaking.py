"""Looks at a running deployment: memory, files, threads and time of its processes; load."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
from deployed import Deployed
from streaming_load import Asked, percentile

WARM_UP = 0.15
"""Share of the time after which memory must grow no more."""


@dataclass
class Seen:
    """A process at one moment: memory that is its own (PSS, MiB), files, threads, CPU seconds."""

    pid: int
    pss_mib: float
    files: int
    threads: int
    cpu_s: float


@dataclass
class Moment:
    """A deployment at `at` seconds after the start; `others` are processors busy otherwise."""

    at: float
    processes: dict[str, Seen] = field(default_factory=dict)
    others: float = 0.0


class Watcher:
    """Takes moments. A process is called by its part: gateway, supervisor, engine of a server."""

    def __init__(self, running: Deployed) -> None:
        self.running = running
        self.started = time.monotonic()
        self.moments: list[Moment] = []
        self._busy = _machine_busy()
        self._before = 0.0
        self._ours: dict[int, float] = {}

    def look(self) -> Moment:
        moment = Moment(time.monotonic() - self.started)
        for name, pid in self._pids().items():
            try:
                moment.processes[name] = _see(pid)
            except psutil.Error:
                continue  # it ends at this very moment
        moment.others = self._others(moment)
        self.moments.append(moment)
        return moment

    def _pids(self) -> dict[str, int]:
        record = self.running.record
        found = {"deployment": record.supervisor_pid}
        if record.gateway_pid:
            found["gateway"] = record.gateway_pid
        for name in record.servers:
            server = self.running.server(name)
            if server is not None and server.engine_pid:
                found[f"supervisor of {name}"] = server.supervisor_pid
                found[f"engine of {name}"] = server.engine_pid
        return found

    def _others(self, moment: Moment) -> float:
        """Processors that were busy since the moment before with what is not the deployment's."""
        busy, elapsed = _machine_busy(), moment.at - self._before
        ours = {each.pid: each.cpu_s for each in moment.processes.values()}
        spent = sum(cpu - self._ours.get(pid, 0.0) for pid, cpu in ours.items())
        others = (busy - self._busy - spent) / elapsed if elapsed > 0 else 0.0
        self._busy, self._before, self._ours = busy, moment.at, ours
        return round(max(0.0, others), 2)


def _see(pid: int) -> Seen:
    process = psutil.Process(pid)
    with process.oneshot():
        times = process.cpu_times()
        return Seen(
            pid,
            round(process.memory_full_info().pss / 2**20, 2),
            process.num_fds(),
            process.num_threads(),
            round(times.user + times.system, 2),
        )


def _machine_busy() -> float:
    """Processor seconds of the whole machine that were not idle, since it started."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


def slope(points: list[tuple[float, float]]) -> float:
    """How much y grows in an hour: the line of least squares through (seconds, y)."""
    count = len(points)
    if count < 2:
        return 0.0
    middle = sum(x for x, _ in points) / count
    height = sum(y for _, y in points) / count
    wide = sum((x - middle) ** 2 for x, _ in points)
    return 3600 * sum((x - middle) * (y - height) for x, y in points) / wide if wide else 0.0


def growth(moments: list[Moment], name: str) -> float:
    """MiB an hour by which a process grew after the warm-up; one process from start to end."""
    begun = moments[-1].at * WARM_UP
    points = [
        (moment.at, moment.processes[name].pss_mib)
        for moment in moments
        if moment.at >= begun and name in moment.processes
    ]
    return round(slope(points), 2)


def minutes(asked: list[Asked], started: float) -> list[dict[str, Any]]:
    """Each minute's requests, failures and times to first token in milliseconds."""
    by_minute: dict[int, list[Asked]] = {}
    for request in asked:
        by_minute.setdefault(int((request.started - started) / 60), []).append(request)
    told = []
    for minute, requests in sorted(by_minute.items()):
        firsts = [(r.first - r.started) * 1000 for r in requests if r.first is not None]
        p50, p95 = percentile(firsts, 0.5), percentile(firsts, 0.95)
        told.append(
            {
                "minute": minute,
                "requests": len(requests),
                "failed": sum(not request.good for request in requests),
                "ttft_p50_ms": round(p50, 1) if p50 is not None else None,
                "ttft_p95_ms": round(p95, 1) if p95 is not None else None,
            }
        )
    return told


def series(moments: list[Moment]) -> list[dict[str, Any]]:
    """The moments as JSON."""
    return [asdict(moment) for moment in moments]
