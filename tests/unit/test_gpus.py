"""GPUs: nvidia-smi's table is read, and CUDA_VISIBLE_DEVICES is respected as CUDA reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer import gpus
from deployer.machine import Gpu

L4 = Gpu("NVIDIA L4", 23034 << 20, (8, 9), "580.65.06")
H100 = Gpu("NVIDIA H100 80GB HBM3", 81559 << 20, (9, 0), "580.65.06")


def test_a_table_is_read() -> None:
    lines = ["NVIDIA L4, 23034, 8.9, 580.65.06", "NVIDIA H100 80GB HBM3, 81559, 9.0, 580.65.06"]
    assert gpus.read_table(lines) == (L4, H100)
    assert L4.capability == "8.9"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "No devices were found",
        "NVIDIA L4, [N/A], 8.9, 580.65.06",
        "NVIDIA L4, 23034, [N/A], 580.65.06",
        "NVIDIA L4, 23034, 8, 580.65.06",
        "NVIDIA L4, 23034, 8.9",
        "Failed to initialize NVML: Driver/library version mismatch",
    ],
)
def test_a_row_that_tells_nothing_is_left_out(line: str) -> None:
    assert gpus.read_table([line]) == ()
    assert gpus.read_table([line, "NVIDIA L4, 23034, 8.9, 580.65.06"]) == (L4,)


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (None, (L4, H100)),
        ("0", (L4,)),
        ("1,0", (H100, L4)),
        ("1", (H100,)),
        ("", ()),
        ("-1", ()),
        ("0,7,1", (L4,)),
        ("GPU-8d3b", (L4, H100)),
    ],
)
def test_visible_devices(chosen: str | None, left: tuple[Gpu, ...]) -> None:
    assert gpus.visible((L4, H100), chosen) == left


def test_without_the_program_nothing_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.gpus() == ()


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_are_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hidden: str
) -> None:
    (tmp_path / "nvidia-smi").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert gpus.gpus() == ()
