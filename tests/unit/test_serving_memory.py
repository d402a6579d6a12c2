"""What a process tree holds, and the kernel's count of those it ended for want of memory."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from deployer import machine
from deployer.serving import memory


def test_a_process_holds_what_the_kernel_says() -> None:
    held = memory.held_beyond(os.getpid(), 1 << 20)
    assert held is not None
    assert 1 << 20 < held <= 2 * psutil.Process().memory_info().rss
    assert memory.held_beyond(os.getpid(), 1 << 50) is None
    assert memory.held_beyond(2**22 + 1, 0) is None, "who is gone holds nothing"


def test_memory_that_is_shared_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_resident", lambda _pid: {1: 100, 2: 100, 3: 100})
    monkeypatch.setattr(memory, "_proportional", lambda pid, _size: {1: 40, 2: 40, 3: 40}[pid])
    assert memory.held_beyond(1, 110) == 120
    assert memory.held_beyond(1, 120) is None


@pytest.mark.parametrize(
    ("group", "whole", "count"),
    [
        ("oom 4\noom_kill 3\n", "oom_kill 9\n", 3),
        (None, "nr_free 1\noom_kill 9\n", 9),
        (None, None, 0),
    ],
)
def test_who_the_kernel_ended_is_counted_as_near_to_us_as_can_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: str | None,
    whole: str | None,
    count: int,
) -> None:
    (tmp_path / "own").write_text("4:memory:/else\n0::/slice/unit\n")
    (tmp_path / "slice" / "unit").mkdir(parents=True)
    for path, text in {"slice/unit/memory.events": group, "vmstat": whole}.items():
        if text is not None:
            (tmp_path / path).write_text(text)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(machine, "VMSTAT", tmp_path / "vmstat")
    assert machine.oom_kills() == count
