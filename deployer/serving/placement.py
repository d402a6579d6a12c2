"""Where on the machine a server runs: its CPUs and its NUMA node, checked before the start."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from deployer.errors import UsageError
from deployer.machine import usable_cores
from deployer.recipe.serve import cpu_list

NODES = Path("/sys/devices/system/node")
_FREE = ("MemFree:", "FilePages:")
"""What of a node can be had: free, or kept of files; what of that is shared memory is not."""


@dataclass(frozen=True)
class Placement:
    """CPUs (sorted; empty: all that this process may use) and the node whose memory is used."""

    cpus: tuple[int, ...] = ()
    node: int | None = None

    @property
    def threads(self) -> int | None:
        """Physical cores among the CPUs, None where none were chosen."""
        return usable_cores(self.cpus) if self.cpus else None

    def free_memory(self) -> int | None:
        """Bytes of the node that can be had, None where no node was chosen or it does not tell."""
        if self.node is None:
            return None
        try:
            text = (NODES / f"node{self.node}" / "meminfo").read_text(encoding="ascii")
        except OSError:
            return None
        sizes = {words[2]: int(words[3]) << 10 for words in map(str.split, text.splitlines())}
        free = sum(sizes.get(name, 0) for name in _FREE) - sizes.get("Shmem:", 0)
        return max(0, free)


def find(cores: str | None, node: int | None) -> Placement:
    """The placement that `serve.cores` and `serve.numa_node` ask for.

    Without `cores` it is the node's. Raises UsageError where this process may not use them.
    """
    if cores is None and node is None:
        return Placement()
    if not hasattr(os, "sched_getaffinity"):
        raise UsageError(
            "serve.cores and serve.numa_node need Linux", "Leave them out on this machine."
        )
    allowed = os.sched_getaffinity(0)
    of_node = allowed if node is None else _cpus_of(node) & allowed
    if cores is None:
        if not of_node:
            raise UsageError(
                f"serve.numa_node {node} has no CPU that this process may use",
                f"It may use {written(allowed)}; set serve.cores to some of them.",
            )
        return Placement(tuple(sorted(of_node)), node)
    wanted = cpu_list(cores)
    if wanted - allowed:
        raise UsageError(
            f"serve.cores {cores}: CPU {min(wanted - allowed)} is none that this process may use",
            f"It may use {written(allowed)}.",
        )
    return Placement(tuple(sorted(wanted)), node)


def _cpus_of(node: int) -> frozenset[int]:
    try:
        text = (NODES / f"node{node}" / "cpulist").read_text(encoding="ascii").strip()
    except OSError as error:
        known = sorted(int(p.name[4:]) for p in NODES.glob("node[0-9]*"))
        names = ", ".join(map(str, known)) or "none that the kernel tells of"
        raise UsageError(
            f"serve.numa_node {node}: this machine has no such node", f"There are: {names}."
        ) from error
    return cpu_list(text) if text else frozenset()


def written(cpus: frozenset[int] | set[int]) -> str:
    """CPUs as a list, for example 0-3,8."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
