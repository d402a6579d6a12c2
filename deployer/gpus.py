"""The NVIDIA GPUs of this machine, as its driver's own `nvidia-smi` tells of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from deployer import process
from deployer.errors import CommandError
from deployer.machine import Gpu

PROGRAM = "nvidia-smi"
FIELDS = ("name", "memory.total", "compute_cap", "driver_version")
HIDDEN = ("", "-1")
"""What CUDA_VISIBLE_DEVICES holds where all GPUs are hidden; then nothing is started."""
TIMEOUT = 10.0
"""Seconds; a driver that hangs must not hang a plan."""


def gpus() -> tuple[Gpu, ...]:
    """Every GPU the driver shows this process, in its order; () where there is none.

    CUDA_VISIBLE_DEVICES is respected where it holds indexes. No driver, or one that fails or does
    not answer within 10 seconds, counts as no GPU.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = process.which(PROGRAM)
    if program is None or chosen in HIDDEN:
        return ()
    query = (f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits")
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="deployer-gpus-") as folder:
        try:
            process.run(
                [str(program), *query],
                env=process.clean_environment(),
                log_path=Path(folder) / "nvidia-smi.log",
                timeout=TIMEOUT,
                on_line=lines.append,
            )
        except CommandError:
            return ()
    return visible(read_table(lines), chosen)


def read_table(lines: Iterable[str]) -> tuple[Gpu, ...]:
    """The GPUs in nvidia-smi's table, memory in MiB; rows it could not fill in are left out."""
    found: list[Gpu] = []
    for line in lines:
        cells = [cell.strip() for cell in line.split(",")]
        try:
            name, memory, capability, driver = cells
            major, minor = capability.split(".")
            found.append(Gpu(name, int(memory) << 20, (int(major), int(minor)), driver))
        except ValueError:  # "[N/A]", a message, another number of cells
            continue
    return tuple(found)


def visible(found: tuple[Gpu, ...], chosen: str | None) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves; all where it is unset or names no indexes.

    As CUDA reads it: an empty value, or an index there is not, ends the list.
    """
    if chosen is None:
        return found
    left: list[Gpu] = []
    for word in chosen.split(","):
        if not word.strip().lstrip("-").isdigit():
            return found if word.strip() else tuple(left)
        index = int(word)
        if not 0 <= index < len(found):
            break
        left.append(found[index])
    return tuple(left)
