"""A real GPU: what is computed from its power is what the driver's own counter says."""

from __future__ import annotations

import ctypes
import os
import time

import pytest

from deployer.gpus import gpus
from deployer.metering import Meter

pytestmark = pytest.mark.integration
SECONDS = 5


class Nvml:
    """The driver's library: energy of the first GPU since the driver was loaded, in joules."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._gpu = ctypes.c_void_p()
        self.must("nvmlInit_v2")
        self.must("nvmlDeviceGetHandleByIndex_v2", 0, ctypes.byref(self._gpu))

    def must(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        assert status == 0, f"{function} gave {status}"

    def joules(self) -> float:
        millijoules = ctypes.c_ulonglong()
        counter = "nvmlDeviceGetTotalEnergyConsumption"
        self.must(counter, self._gpu, ctypes.byref(millijoules))
        return millijoules.value / 1000


@pytest.mark.skipif(not gpus(), reason="needs a machine with an NVIDIA GPU that does nothing else")
def test_a_gpus_energy_is_what_its_own_counter_says() -> None:
    counter = Nvml()
    before = counter.joules()
    with Meter(os.getpid()) as meter:
        time.sleep(SECONDS)
    spent = counter.joules() - before
    assert meter.reading.energy_source and "NVML" in meter.reading.energy_source
    assert meter.reading.energy_j == pytest.approx(spent, rel=0.05)
    assert meter.reading.gpu_bytes is not None
