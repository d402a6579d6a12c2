"""What a machine gives: limits of control groups, wherever they stand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deployer import machine

SERVICE = "system.slice/chat.service"


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The control groups of a machine, this process in a service's."""
    (tmp_path / "cgroup" / SERVICE).mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text(f"1:name=systemd:/\n0::/{SERVICE}\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_GROUP", own)
    return tmp_path / "cgroup"


@pytest.mark.parametrize("limited", [".", "system.slice", SERVICE])
def test_a_memory_limit_holds_wherever_it_stands(groups: Path, limited: str) -> None:
    (groups / limited / "memory.max").write_text("1000000\n")
    (groups / limited / "memory.current").write_text("400000\n")
    assert machine.available_memory() == 600_000
    (groups / limited / "memory.stat").write_text("anon 1000\ninactive_file 150000\nslab 5\n")
    assert machine.available_memory() == 750_000


def test_the_narrowest_limit_counts(groups: Path) -> None:
    for limited, limit in ((".", "3000000"), ("system.slice", "max"), (SERVICE, "2000000")):
        (groups / limited / "memory.max").write_text(limit)
        (groups / limited / "memory.current").write_text("500000")
    assert machine.available_memory() == 1_500_000


@pytest.mark.parametrize("limited", ["system.slice", SERVICE])
def test_a_services_quota_bounds_its_cores(
    groups: Path, limited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CPUS", groups)  # no siblings are known: each CPU is a core
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    assert machine.usable_cores() == 8
    (groups / limited / "cpu.max").write_text("250000 100000\n")
    assert machine.usable_cores() == 3


def test_no_control_groups_no_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "none")
    monkeypatch.setattr(machine, "OWN_GROUP", tmp_path / "nothing")
    assert machine.available_memory() > 0
