"""What the machine did while something was measured: energy, GPU memory, and what others used.

Energy of the processors comes from RAPL (Linux, /sys/class/powercap, readable by root on most
machines), that of NVIDIA GPUs from the power that `nvidia-smi` tells five times a second. What
cannot be read is None.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from deployer import process
from deployer.gpus import PROGRAM, gpus

POWERCAP = Path("/sys/class/powercap")
CONTENDED = 0.10
"""Others that used more than this share of all processors have disturbed a measurement."""
_COUNTERS = ("energy_uj", "max_energy_range_uj")
_FIELDS = ("index", "power.draw.instant", "memory.used")
_INTERVAL_MS = 200
"""On an H100 this came within 4 % of the driver's own energy counter over six seconds, idle, busy
and in between. The field power.draw is a mean over the second before, and once a second is too
seldom: that was 14 % too little when busy and 72 % too much just after."""


@dataclass(frozen=True)
class Reading:
    """What was read. `others`: share of all processors that foreign processes used, 0 to 1."""

    seconds: float
    others: float
    energy_j: float | None = None
    energy_source: str | None = None
    gpu_bytes: int | None = None


class Meter:
    """Reads the machine from entering the context to leaving it; then `reading` is there.

    `server_pid` is the server that is measured: what it, its children, this process and the
    children it has waited for compute is ours, all else others'.
    """

    reading: Reading

    def __init__(self, server_pid: int, powercap: Path = POWERCAP) -> None:
        self._pid = server_pid
        self._powercap = powercap

    def __enter__(self) -> Meter:
        self._gpus = _GpuLog() if gpus() else None
        self._packages = _packages(self._powercap)
        self._busy, self._ours = _busy_seconds(), self._own_seconds()
        self._started = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        seconds = time.monotonic() - self._started
        foreign = _busy_seconds() - self._busy - (self._own_seconds() - self._ours)
        others = foreign / (seconds * (os.cpu_count() or 1))
        joules = _used(self._packages, _packages(self._powercap))
        sources = ["RAPL package"] if joules is not None else []
        gpu_bytes = None
        if self._gpus:
            watts, gpu_bytes = self._gpus.close()
            if watts is not None:
                joules = (joules or 0.0) + watts * seconds
                sources.append("NVML")
        self.reading = Reading(
            seconds, min(max(others, 0.0), 1.0), joules, " and ".join(sources) or None, gpu_bytes
        )

    def _own_seconds(self) -> float:
        """Processor seconds of the server with its children, and of us with ours."""
        mine = os.times()
        total = mine.user + mine.system + mine.children_user + mine.children_system
        try:
            server = psutil.Process(self._pid)
            family = [server, *server.children(recursive=True)]
        except psutil.Error:
            return total
        for member in family:
            try:
                spent = member.cpu_times()
            except psutil.Error:
                continue
            total += spent.user + spent.system + spent.children_user + spent.children_system
        return total


def busy_now(seconds: float = 1.0) -> float:
    """Share of all processors that is in use, over so many seconds."""
    return float(psutil.cpu_percent(interval=seconds)) / 100


def _busy_seconds() -> float:
    """Seconds all processors have worked since boot, also for other machines on the same host."""
    times = psutil.cpu_times()._asdict()
    idle = ("idle", "iowait", "guest", "guest_nice")  # guest is in user, guest_nice in nice
    return float(sum(value for name, value in times.items() if name not in idle))


def _packages(powercap: Path) -> dict[Path, tuple[int, int]]:
    """RAPL domain of each processor package -> (energy so far, where it wraps), microjoules."""
    found = {}
    for domain in sorted(powercap.glob("intel-rapl:*")):
        try:
            if (domain / "name").read_text().startswith("package"):
                counts = tuple(
                    int((domain / name).read_text())
                    for name in ("energy_uj", "max_energy_range_uj")
                )
                found[domain] = (counts[0], counts[1])
        except (OSError, ValueError):
            continue
    return found


def _used(before: dict[Path, tuple[int, int]], after: dict[Path, tuple[int, int]]) -> float | None:
    """Joules between two readings; None where there is no counter."""
    if not before or before.keys() != after.keys():
        return None
    total = 0
    for domain, (first, wrap) in before.items():
        last = after[domain][0]
        total += last - first if last >= first else last + wrap - first
    return total / 1e6


class _GpuLog:
    """`nvidia-smi` in the background, a line for each GPU and interval."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="deployer-meter-")
        program = process.which(PROGRAM) or PROGRAM
        query = (f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits")
        self._log = Path(self._folder.name) / "gpus.csv"
        self._child = process.spawn(
            [str(program), *query, f"-lms={_INTERVAL_MS}"],
            env=process.clean_environment(),
            log_path=self._log,
        )

    def close(self) -> tuple[float | None, int | None]:
        """(mean power of all GPUs in watts, the most memory they held in bytes)."""
        self._child.stop(grace=2.0)
        text = self._log.read_text("utf-8", "replace")
        self._folder.cleanup()
        return read_log(text)


def read_log(text: str) -> tuple[float | None, int | None]:
    """(watts, bytes) of nvidia-smi's lines; of each GPU the mean power and its fullest moment."""
    watts, mebibytes = defaultdict(list), defaultdict(list)
    for line in text.splitlines():
        try:
            index, power, used = (cell.strip() for cell in line.split(","))
            watts[index].append(float(power))
            mebibytes[index].append(int(used))
        except ValueError:  # "[N/A]", a message
            continue
    if not watts:
        return None, None
    mean = sum(sum(values) / len(values) for values in watts.values())
    return mean, sum(max(values) for values in mebibytes.values()) << 20
