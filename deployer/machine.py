"""What this machine gives a process: cores and memory, a container's limits counted.

`gpus` fills in `Gpu`; asking for GPUs starts a program, so it is no part of this module.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

CPUS = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU: its memory in bytes, its compute capability such as (8, 9), its driver."""

    name: str
    memory_bytes: int
    compute_capability: tuple[int, int]
    driver: str = ""

    @property
    def capability(self) -> str:
        """As people write it, for example 8.9."""
        return ".".join(map(str, self.compute_capability))


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
