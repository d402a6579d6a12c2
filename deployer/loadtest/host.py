"""Facts of the machine and of this installation, for the result document."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

import deployer
from deployer.results import Host

_TOOLS = ("locust", "gevent", "geventhttpclient")


def describe() -> Host:
    """The host as it is now; take it before the load starts."""
    return Host(
        cpu=_cpu(),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        memory_bytes=psutil.virtual_memory().total,
        gpus=_gpus(),
        system=f"{platform.system()} {platform.release()}",
        load_before=psutil.getloadavg(),
    )


def versions() -> dict[str, str]:
    """Versions of what measures."""
    found = {"deployer": deployer.__version__, "python": platform.python_version()}
    for name in _TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit(checkout: Path) -> str | None:
    """The commit a checkout stands at, read from its files; None where it is no checkout."""
    git = checkout / ".git"
    try:
        head = (git / "HEAD").read_text("utf-8").strip()
        if not head.startswith("ref: "):
            return head
        ref = head.removeprefix("ref: ")
        if (git / ref).is_file():
            return (git / ref).read_text("utf-8").strip()
        packed = (git / "packed-refs").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((line.split()[0] for line in packed if line.endswith(f" {ref}")), None)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _gpus() -> tuple[str, ...]:
    """Names of NVIDIA GPUs, from the driver's files."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text("utf-8", "replace").splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    return tuple(names)
