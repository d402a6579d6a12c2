"""What serving needs to know of the machine: cores, memory, and who a process is."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil

CPUS = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Physical cores this process may use: its affinity mask, bounded by a container's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len({_core_of(cpu) for cpu in os.sched_getaffinity(0)})
    else:
        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    quota = _words(CGROUP / "cpu.max")
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, math.ceil(int(quota[0]) / int(quota[1])))
    return max(1, cores)


def _core_of(cpu: int) -> str:
    """The logical CPUs that share one physical core, as the kernel writes them."""
    words = _words(CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list")
    return words[0] if words else str(cpu)


def available_memory() -> int:
    """Bytes that can be had without swapping, bounded by a container's limit."""
    available = int(psutil.virtual_memory().available)
    limit = _words(CGROUP / "memory.max")
    used = _words(CGROUP / "memory.current")
    if limit and used and limit[0].isdigit():
        available = min(available, max(0, int(limit[0]) - int(used[0])))
    return available


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []


def start_mark(pid: int) -> str | None:
    """What tells this process from a later one with the same pid; None where it does not run.

    On Linux the start in ticks since boot, which setting the clock does not change.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists():  # the name, in parentheses, may hold anything; field 22 is the start
            return stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        return f"{process.create_time():.2f}"
    except (psutil.Error, OSError, IndexError):
        return None


def peak_rss(pid: int) -> int | None:
    """The most physical memory a process has held so far, bytes (Linux only)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else None
