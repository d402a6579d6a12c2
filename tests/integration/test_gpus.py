"""GPUs asked for with a real process: a script named nvidia-smi stands in for the driver's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from deployer import gpus

pytestmark = pytest.mark.integration
FAKE = """#!/bin/sh
test "$1" = "--query-gpu=name,memory.total,compute_cap,driver_version" || exit 9
test "$2" = "--format=csv,noheader,nounits" || exit 9
{body}
"""


@pytest.fixture
def nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "nvidia-smi"


def write(script: Path, body: str) -> None:
    script.write_text(FAKE.format(body=body), encoding="utf-8")
    script.chmod(0o755)


def test_two_gpus(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(nvidia_smi, "printf 'NVIDIA L4, 23034, 8.9, 580.65\\nTesla T4, 15360, 7.5, 580.65\\n'")
    assert [(gpu.name, gpu.compute_capability) for gpu in gpus.gpus()] == [
        ("NVIDIA L4", (8, 9)),
        ("Tesla T4", (7, 5)),
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.name for gpu in gpus.gpus()] == ["Tesla T4"]


def test_a_driver_that_fails_shows_no_gpu(nvidia_smi: Path) -> None:
    write(nvidia_smi, "echo 'NVIDIA-SMI has failed because it could not communicate'; exit 9")
    assert gpus.gpus() == ()


def test_a_driver_that_hangs_is_given_up(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(nvidia_smi, "sleep 60")
    monkeypatch.setattr(gpus, "TIMEOUT", 0.5)
    started = time.monotonic()
    assert gpus.gpus() == ()
    assert time.monotonic() - started < 10
