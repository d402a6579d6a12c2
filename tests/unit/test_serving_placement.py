"""CPUs and NUMA nodes as a recipe names them, on machines that are made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from deployer import machine
from deployer.errors import UsageError
from deployer.recipe import Serve
from deployer.recipe.serve import cpu_list
from deployer.serving import placement
from deployer.serving.placement import Placement

MEMINFO = """\
Node 1 MemTotal:       1000 kB
Node 1 MemFree:         100 kB
Node 1 FilePages:       300 kB
Node 1 Shmem:            50 kB
Node 1 HugePages_Total:     0
"""


@pytest.fixture(autouse=True)
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight CPUs, two to a core, four to a node; this process may use all but 7."""
    for node, cpus in enumerate(("0-3", "4-7")):
        folder = tmp_path / "nodes" / f"node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{cpus}\n")
        (folder / "meminfo").write_text(MEMINFO)
    for cpu in range(8):
        folder = tmp_path / "cpus" / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        first = cpu // 2 * 2
        (folder / "thread_siblings_list").write_text(f"{first}-{first + 1}\n")
    monkeypatch.setattr(placement, "NODES", tmp_path / "nodes")
    monkeypatch.setattr(machine, "CPUS", tmp_path / "cpus")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(7)), raising=False)


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", {0}), ("0-3,8", {0, 1, 2, 3, 8}), ("5,5,4-5", {4, 5})]
)
def test_a_list_of_cpus(text: str, cpus: set[int]) -> None:
    assert cpu_list(text) == cpus
    assert Serve(cores=text).cores == text


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "0-99999", "1;2", "1 2", "0-9" * 400])
def test_what_is_no_list_of_cpus(text: str) -> None:
    with pytest.raises(ValidationError):
        Serve(cores=text)


def test_cores_that_share_a_physical_one_get_one_thread() -> None:
    assert placement.find("0-3", None) == Placement((0, 1, 2, 3))
    assert placement.find("0-3", None).threads == 2
    assert placement.find("0,2,4", None).threads == 3
    assert Placement().threads is None


def test_a_node_brings_its_cpus_as_far_as_they_may_be_used() -> None:
    assert placement.find(None, 1) == Placement((4, 5, 6), 1)
    assert placement.find("0-1", 1) == Placement((0, 1), 1), "memory of one, CPUs of another"
    assert placement.find(None, None) == Placement()


def test_what_a_node_has_to_give() -> None:
    assert placement.find(None, 1).free_memory() == 350 << 10
    assert placement.find("0", None).free_memory() is None
    assert Placement((), 9).free_memory() is None


@pytest.mark.parametrize(
    ("cores", "node", "message", "hint"),
    [
        ("6-8", None, "CPU 7 is none that this process may use", "It may use 0-6."),
        (None, 5, "has no such node", "There are: 0, 1."),
    ],
)
def test_what_this_machine_does_not_have(
    cores: str | None, node: int | None, message: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        placement.find(cores, node)
    assert caught.value.hint == hint


def test_a_node_all_of_whose_cpus_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 3})
    with pytest.raises(UsageError, match="has no CPU that this process may use") as caught:
        placement.find(None, 1)
    assert "0-1,3" in caught.value.hint
    assert placement.find("3", 1) == Placement((3,), 1)


def test_elsewhere_than_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    with pytest.raises(UsageError, match="need Linux"):
        placement.find("0", None)
    assert placement.find(None, None) == Placement()


def test_settings_of_a_machine_are_written_only_where_they_are_set() -> None:
    plain = Serve().model_dump(mode="json")
    assert not {"cores", "numa_node", "memory_limit_gib"} & set(plain)
    assert Serve.model_validate_json(Serve().model_dump_json()) == Serve()
    pinned = Serve(cores="0-1", numa_node=0, memory_limit_gib=2.5)
    assert Serve.model_validate_json(pinned.model_dump_json()) == pinned
    assert {"cores", "numa_node", "memory_limit_gib"} <= set(pinned.model_dump())
