"""What machine this is, as far as toolchains care."""

from __future__ import annotations

import contextlib
import platform
import sys
from pathlib import Path

from deployer.toolchains.specs import Host

# The driver's control device; under WSL the GPU of Windows.
NVIDIA_DEVICES = ("/dev/nvidiactl", "/dev/dxg")


def this_host() -> Host:
    """The machine we run on."""
    return Host(
        system=platform.system(),
        machine=platform.machine(),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        cpu=_cpu_features(),
        cuda=any(Path(device).exists() for device in NVIDIA_DEVICES),
    )


def _cpu_features() -> str:
    """The processor's feature list (Linux), else its name."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        for line in lines:
            if line.lower().startswith(("flags", "features")):
                return " ".join(sorted(line.split(":", 1)[1].split()))
    return platform.processor()
