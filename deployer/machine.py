"""What this machine gives a process: cores and memory, the limits of its control groups counted.

A container's limit stands in the group at the root, as the container sees it; systemd's MemoryMax
and CPUQuota stand in the service's own group or one of those around it. All of them hold.

`gpus` fills in `Gpu`; asking for GPUs starts a program, so it is no part of this module.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

CPUS = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
VMSTAT = Path("/proc/vmstat")


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


def usable_cores(among: Collection[int] | None = None) -> int:
    """Physical cores this process may use: its affinity mask, bounded by a container's quota.

    `among` are the logical CPUs to count instead of that mask.
    """
    if among is not None:
        cores = len({_core_of(cpu) for cpu in among})
    elif hasattr(os, "sched_getaffinity"):
        cores = len({_core_of(cpu) for cpu in os.sched_getaffinity(0)})
    else:
        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    for group in _groups():
        quota = _words(group / "cpu.max")
        if len(quota) == 2 and quota[0].isdigit():
            cores = min(cores, math.ceil(int(quota[0]) / int(quota[1])))
    return max(1, cores)


def _core_of(cpu: int) -> str:
    """The logical CPUs that share one physical core, as the kernel writes them."""
    words = _words(CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list")
    return words[0] if words else str(cpu)


def available_memory() -> int:
    """Bytes that can be had without swapping, bounded by the limits of the control groups."""
    available = int(psutil.virtual_memory().available)
    for group in _groups():
        limit, used = _words(group / "memory.max"), _words(group / "memory.current")
        if limit and used and limit[0].isdigit():
            left = int(limit[0]) - int(used[0]) + _unused_file_cache(group)
            available = min(available, max(0, left))
    return available


def _unused_file_cache(group: Path) -> int:
    """Bytes of files that were read long ago: counted as used, and given back when asked for."""
    words = _words(group / "memory.stat")
    found = dict(zip(words[::2], words[1::2], strict=False))
    return int(found.get("inactive_file", "0"))


def oom_kills() -> int:
    """How often the kernel has ended a process for want of memory, since it began to count.

    In this process's control group where that tells, else on this machine; 0 where nothing does.
    """
    for path in (_groups()[0] / "memory.events", VMSTAT):
        words = _words(path)
        found = dict(zip(words[::2], words[1::2], strict=False))
        if "oom_kill" in found:
            return int(found["oom_kill"])
    return 0


def _groups() -> list[Path]:
    """The control group (version 2) of this process and all around it, as far as they are seen."""
    lines = _words(OWN_GROUP)
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    group = CGROUP / own
    return [group, *(parent for parent in group.parents if parent.is_relative_to(CGROUP))]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
