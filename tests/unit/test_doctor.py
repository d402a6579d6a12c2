"""Doctor: what it finds good, limiting or bad, and what it says to do."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from deployer import doctor
from deployer.home import Home
from deployer.machine import Gpu


def finding(name: str, home: Home) -> doctor.Finding:
    (found,) = [each for each in doctor.examine(home) if each.name == name]
    return found


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpus", lambda: ())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "not" / "there")


def test_it_looks_at_everything_and_makes_nothing(home: Home) -> None:
    names = [each.name for each in doctor.examine(home)]
    assert {"python", "processor", "memory", "home", "disk", "C++ compiler", "toolchains"} <= set(
        names
    )
    assert not home.root.exists()


@pytest.mark.parametrize(("available", "verdict"), [(3 * 10**9, "bad"), (5 * 10**9, "good")])
def test_memory(home: Home, monkeypatch: pytest.MonkeyPatch, available: int, verdict: str) -> None:
    memory = SimpleNamespace(available=available, total=8 * 10**9)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: memory)
    found = finding("memory", home)
    assert found.verdict == verdict
    assert "of 8.0 GB" in found.detail


@pytest.mark.parametrize(("free", "verdict"), [(10**9, "bad"), (10**11, "good")])
def test_disk(home: Home, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str) -> None:
    monkeypatch.setattr(doctor.psutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    found = finding("disk", home)
    assert found.verdict == verdict
    assert bool(found.hint) == (verdict == "bad")


def test_a_home_that_cannot_be_written_is_bad(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = finding("home", home)
    assert found.verdict == "bad"
    assert "DEPLOYER_HOME" in found.hint


@pytest.mark.parametrize("name", ["C++ compiler", "llama-server"])
def test_what_is_optional_is_only_noted(
    home: Home, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(doctor.process, "which", lambda program: None)
    assert finding(name, home).verdict == "note"
    monkeypatch.setattr(doctor.process, "which", lambda program: Path("/bin") / program)
    assert finding(name, home).verdict == "good"


def test_gpus_are_described(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpus", lambda: (Gpu("NVIDIA L4", 24 * 10**9, (8, 9), "580.65"),))
    found = finding("GPU", home)
    assert found.verdict == "good"
    assert found.detail == "NVIDIA L4, 24.0 GB, compute capability 8.9, driver 580.65"


def test_no_gpu_and_a_driver_without_one_are_noted(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "gpus", lambda: ())
    monkeypatch.setattr(doctor.process, "which", lambda program: None)
    assert finding("GPU", home).detail.startswith("none found")
    monkeypatch.setattr(doctor.process, "which", lambda program: Path("/bin") / program)
    found = finding("GPU", home)
    assert (found.verdict, "nvidia-smi" in found.hint) == ("note", True)


def test_another_python_is_noted(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=(3, 12, 1)))
    assert finding("python", home).verdict == "note"


def test_toolchains_are_told_apart(home: Home) -> None:
    assert "llama-cpp (made when needed)" in finding("toolchains", home).detail
