"""What this machine has and lacks for building and serving, each with what to do about it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import psutil

from deployer import process
from deployer.gpus import PROGRAM as NVIDIA_SMI
from deployer.gpus import gpus
from deployer.home import Home
from deployer.machine import Gpu, available_memory, usable_cores
from deployer.toolchains.installation import installed
from deployer.toolchains.specs import SPECS

Verdict = Literal["good", "note", "bad"]
LEAST_DISK = 6 * 10**9
LEAST_MEMORY = 4 * 10**9


@dataclass(frozen=True)
class Finding:
    """One thing looked at. "bad" stops the demo from working, a "note" limits what can be done."""

    name: str
    verdict: Verdict
    detail: str
    hint: str = ""


def examine(home: Home) -> list[Finding]:
    """Look at everything; asks no network and starts no program but nvidia-smi."""
    checks: tuple[Callable[[Home], Finding], ...] = (
        _python, _processor, _memory, _home, _disk, _compiler, _gpu, _llama_server, _toolchains,
    )  # fmt: skip
    return [check(home) for check in checks]


def _python(home: Home) -> Finding:
    version = platform.python_version()
    if sys.version_info[:2] == (3, 11):
        return Finding("python", "good", version)
    return Finding(
        "python", "note", version, "The locks of the convert toolchain are for Python 3.11."
    )


def _processor(home: Home) -> Finding:
    detail = f"{platform.machine()}, {usable_cores()} usable cores"
    return Finding("processor", "good", detail)


def _memory(home: Home) -> Finding:
    available = available_memory()
    total = psutil.virtual_memory().total
    detail = f"{available / 1e9:.1f} of {total / 1e9:.1f} GB available"
    if available < LEAST_MEMORY:
        return Finding("memory", "bad", detail, "The demo needs about 4 GB; end other programs.")
    return Finding("memory", "good", detail)


def _home(home: Home) -> Finding:
    folder = home.root
    while not folder.exists():
        folder = folder.parent
    if os.access(folder, os.W_OK):
        return Finding("home", "good", str(home.root))
    return Finding("home", "bad", f"{home.root} is not writable", "Set DEPLOYER_HOME.")


def _disk(home: Home) -> Finding:
    folder = home.root
    while not folder.exists():
        folder = folder.parent
    free = psutil.disk_usage(str(folder)).free
    detail = f"{free / 1e9:.1f} GB free"
    if free < LEAST_DISK:
        hint = "The demo needs about 6 GB; set DEPLOYER_HOME to a folder on a larger disk."
        return Finding("disk", "bad", detail, hint)
    return Finding("disk", "good", detail)


def _compiler(home: Home) -> Finding:
    found = process.which(os.environ.get("CXX", "c++")) or process.which("g++")
    if found:
        return Finding("C++ compiler", "good", str(found))
    return Finding(
        "C++ compiler",
        "note",
        "none",
        "q4_0 and q8_0 work without; other types need one (Debian: apt install g++).",
    )


def _gpu(home: Home) -> Finding:
    found = gpus()
    if found:
        return Finding("GPU", "good", "; ".join(map(_described, found)))
    if process.which(NVIDIA_SMI):
        hint = f"Run {NVIDIA_SMI}; mend the driver, or CUDA_VISIBLE_DEVICES where it is set."
        return Finding("GPU", "note", "an NVIDIA driver is installed and shows no GPU", hint)
    return Finding("GPU", "note", "none found; models are built and served on the CPU")


def _described(gpu: Gpu) -> str:
    memory = f"{gpu.memory_bytes / 1e9:.1f} GB"
    return f"{gpu.name}, {memory}, compute capability {gpu.capability}, driver {gpu.driver}"


def _llama_server(home: Home) -> Finding:
    found = process.which("llama-server")
    if found:
        return Finding("llama-server", "good", str(found))
    return Finding("llama-server", "note", "none installed; the xllamacpp wheel is used")


def _toolchains(home: Home) -> Finding:
    there = {entry.name for entry in installed(home) if entry.current}
    states = [f"{name} ({'ready' if name in there else 'made when needed'})" for name in SPECS]
    return Finding("toolchains", "good", ", ".join(states))
