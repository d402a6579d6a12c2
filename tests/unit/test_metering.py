"""What the machine did meanwhile: energy counters that wrap, GPU logs, and processors in use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deployer import metering
from deployer.metering import Meter, read_log

NOBODY = 2**22 + 1
"""A pid beyond the largest there is."""


def rapl(root: Path, number: int, name: str, energy: int, wraps: int = 1_000_000) -> Path:
    domain = root / f"intel-rapl:{number}"
    domain.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", wraps)):
        (domain / file).write_text(f"{value}\n", encoding="ascii")
    return domain


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "gpus", lambda: ())


def test_energy_is_that_of_all_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    rapl(tmp_path, 0, "package-0", 100_000)
    rapl(tmp_path, 1, "package-1", 900_000)
    rapl(tmp_path, 2, "psys", 5)
    with Meter(os.getpid(), tmp_path) as meter:
        rapl(tmp_path, 0, "package-0", 350_000)
        rapl(tmp_path, 1, "package-1", 200_000)
        rapl(tmp_path, 2, "psys", 500_000)
    assert meter.reading.energy_j == pytest.approx(0.25 + 0.3)
    assert meter.reading.energy_source == "RAPL package"


def test_without_a_counter_there_is_no_energy(tmp_path: Path) -> None:
    with Meter(os.getpid(), tmp_path) as meter:
        pass
    assert (meter.reading.energy_j, meter.reading.energy_source) == (None, None)
    assert meter.reading.gpu_bytes is None


@pytest.mark.integration
def test_what_the_server_computes_is_not_others(tmp_path: Path) -> None:
    """Two meters of the same second: for one of them the busy process is the server."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with Meter(child.pid, tmp_path) as ours, Meter(NOBODY, tmp_path) as theirs:
            before = psutil.Process(child.pid).cpu_times().user
            time.sleep(1.0)
            spent = psutil.Process(child.pid).cpu_times().user - before
    finally:
        child.kill()
        child.wait()
    assert spent > 0.1
    apart = (theirs.reading.others - ours.reading.others) * (os.cpu_count() or 1)
    assert apart == pytest.approx(spent, abs=0.2)


def test_a_gpu_log_gives_the_mean_power_and_the_fullest_moment() -> None:
    log = "0, 100.0, 1000\n1, 50.0, 2000\n0, 200.0, 3000\n1, [N/A], 4\nsome message\n1, 50.0, 500\n"
    assert read_log(log) == (200.0, (3000 + 2000) << 20)
    assert read_log("Failed to initialize NVML\n") == (None, None)
