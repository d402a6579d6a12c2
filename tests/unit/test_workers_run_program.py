"""The filter that confines generated code: its numbers, without installing it."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "deployer" / "workers" / "run_program.py"


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_program", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def decide(code: bytes, architecture: int, number: int) -> int:
    """What a kernel's BPF machine returns for one system call."""
    steps = list(struct.iter_unpack("=HBBI", code))
    at = value = 0
    while True:
        kind, if_true, if_false, operand = steps[at]
        at += 1
        if kind == 0x20:
            value = {0: number, 4: architecture}[operand]
        elif kind == 0x15:
            at += if_true if value == operand else if_false
        elif kind == 0x35:
            at += if_true if value >= operand else if_false
        else:
            return operand


FORBIDDEN = {  # open, openat, socket, connect, clone, fork, execve, kill, ptrace, io_uring_setup
    "x86_64": (2, 257, 41, 42, 56, 57, 59, 62, 101, 425, 0x40000000, 0x40000001, 10_000),
    "aarch64": (56, 198, 203, 220, 221, 129, 117, 425, 435, 10_000),
}


@pytest.mark.parametrize("machine", FORBIDDEN)
def test_the_filter_allows_what_is_listed_and_nothing_else(
    worker: ModuleType, machine: str
) -> None:
    column, architecture = worker.MACHINES[machine]
    code = worker.filter_code(machine)
    allowed = {row[column] for row in worker.CALLS.values()} - {None}
    for number in range(600):
        wanted = worker._ALLOW if number in allowed else worker._DENY
        assert decide(code, architecture, number) == wanted, number
    for number in FORBIDDEN[machine]:
        assert decide(code, architecture, number) == worker._DENY, number
    assert decide(code, architecture ^ 1, 0) == worker._KILL


def test_an_unknown_machine_has_no_filter(worker: ModuleType) -> None:
    with pytest.raises(KeyError):
        worker.filter_code("riscv64")


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("assert 1 + 1 == 2", "passed"),
        ("assert 1 + 1 == 3", "failed"),
        ("raise SystemExit(0)", "failed"),
        ("def f(:", "failed"),
        ("raise MemoryError", "memory"),
        ("raise PermissionError(1, 'no')", "forbidden"),
    ],
)
def test_how_a_program_ended_is_told_apart(worker: ModuleType, program: str, verdict: str) -> None:
    assert worker.outcome(program)[0] == verdict
