"""Programs are started with their own group, log and environment, and ended with all they began."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from command_line import gone

from deployer import process
from deployer.errors import CommandError

pytestmark = pytest.mark.integration

ENV = {"PATH": os.environ["PATH"], "ONLY": "this"}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "child.log"


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_output_goes_to_the_log_and_lines_to_the_caller(log: Path) -> None:
    lines: list[str] = []
    status = process.run(
        shell("echo one; echo two >&2; printf '\\377\\n'; env"), env=ENV, log_path=log,
        on_line=lines.append,
    )  # fmt: skip
    assert status == 0
    assert lines[:2] == ["one", "\ufffd"]
    assert {line for line in lines if line.startswith(("ONLY", "HOME"))} == {"ONLY=this"}
    assert b"two" in log.read_bytes()
    assert b"one" in log.read_bytes()


def test_a_failure_has_status_log_and_tail(log: Path) -> None:
    with pytest.raises(CommandError, match="sh failed with exit status 3") as caught:
        process.run(shell("echo why it failed; exit 3"), env=ENV, log_path=log)
    error = caught.value
    assert error.returncode == 3
    assert error.log_path == log
    assert "why it failed" in error.tail
    assert str(log) in error.hint
    assert process.run(shell("exit 3"), env=ENV, log_path=log, check=False) == 3


@pytest.mark.parametrize(
    ("name", "words"), [("KILL", r"SIGKILL \(out of memory\?\)"), ("TERM", "SIGTERM")]
)
def test_a_signal_is_named(log: Path, name: str, words: str) -> None:
    with pytest.raises(CommandError, match=f"was ended by {words}"):
        process.run(shell(f"kill -{name} $$"), env=ENV, log_path=log)


def test_what_cannot_be_started_is_a_command_error(log: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program", encoding="utf-8")
    for program in ("no-such-program-at-all", str(tmp_path / "text"), str(tmp_path)):
        with pytest.raises(CommandError, match="cannot start") as caught:
            process.run([program], env=ENV, log_path=log)
        assert caught.value.hint


def test_shell_metacharacters_are_only_characters(log: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    words = f"; touch {canary} $(touch {canary}) `touch {canary}` | & > {canary} --help"
    lines: list[str] = []
    process.run(["printf", "%s\\n", words], env=ENV, log_path=log, on_line=lines.append)
    assert lines == [words]
    assert not canary.exists()


def test_a_program_that_takes_too_long_is_ended_with_its_children(log: Path) -> None:
    lines: list[str] = []
    script = "trap '' TERM; sleep 600 & echo $!; wait"
    with pytest.raises(CommandError, match="took longer than 1 s"):
        process.run(shell(script), env=ENV, log_path=log, timeout=1, on_line=lines.append)
    assert gone(int(lines[0]))


def test_what_a_program_leaves_running_is_ended(log: Path) -> None:
    lines: list[str] = []
    script = "sleep 600 >/dev/null 2>&1 & echo $!"
    process.run(shell(script), env=ENV, log_path=log, on_line=lines.append)
    assert gone(int(lines[0]))


def test_an_interrupt_of_ours_ends_the_program(log: Path) -> None:
    lines: list[str] = []

    def interrupt(line: str) -> None:
        lines.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.run(shell("echo $$; sleep 600"), env=ENV, log_path=log, on_line=interrupt)
    assert gone(int(lines[0]))


def test_stop_is_gentle_first(log: Path) -> None:
    script = "trap 'echo goodbye; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    child = process.spawn(shell(script), env=ENV, log_path=log)
    while "ready" not in process.tail(log):
        time.sleep(0.02)
    assert child.poll() is None
    with pytest.raises(TimeoutError, match="still runs"):
        child.wait(0.05)
    assert child.stop(grace=10) == 7
    assert "goodbye" in process.tail(log)
    child.signal(signal.SIGTERM)  # nothing happens to one that is gone
    assert child.stop() == 7


@pytest.mark.parametrize("outlive_us", [False, True])
def test_the_death_of_the_parent(tmp_path: Path, outlive_us: bool) -> None:
    code = (
        "import os, sys, signal; from pathlib import Path; from deployer import process\n"
        f"child = process.spawn(['sleep', '600'], env={ENV!r}, log_path=Path(sys.argv[1]),"
        f" outlive_us={outlive_us})\n"
        "print(child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, check=False
    )
    pid = int(ran.stdout)
    if outlive_us:
        time.sleep(0.2)
        assert psutil.pid_exists(pid)
        os.kill(pid, signal.SIGKILL)
    else:
        assert gone(pid)


def facts_of(log: Path, **placed: object) -> dict[str, str]:
    """What the kernel says of a child that was placed so, and of the children it has itself."""
    script = "cat /proc/self/status; tail -n 5 /proc/self/numa_maps"
    child = process.spawn(shell(script), env=ENV, log_path=log, **placed)  # type: ignore[arg-type]
    assert child.wait(10) == 0
    lines = log.read_text().splitlines()
    facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    policies = {line.split()[1] for line in lines if re.match(r"[0-9a-f]{8,} ", line)}
    return {**facts, "policies": " ".join(policies)}


def test_a_program_runs_on_its_cpus_with_all_it_starts(log: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    assert facts_of(log, cpus=allowed[-1:])["Cpus_allowed_list"] == str(allowed[-1])
    assert os.sched_getaffinity(0) == set(allowed), "ours are as they were"


@pytest.mark.skipif(not Path("/sys/devices/system/node/node0").exists(), reason="no NUMA node")
def test_a_program_takes_memory_of_its_node_alone(log: Path, tmp_path: Path) -> None:
    try:
        facts = facts_of(log, memory_node=0)
    except CommandError:
        pytest.skip("memory policies are forbidden here")
    assert "bind:0" in facts["policies"]
    assert "bind" not in facts_of(tmp_path / "other.log")["policies"]


@pytest.mark.parametrize("placed", [{"cpus": (100_000,)}, {"memory_node": 1000}])
def test_a_placement_that_cannot_be_is_told(log: Path, placed: dict[str, object]) -> None:
    with pytest.raises(CommandError, match="on the CPUs and the NUMA node") as caught:
        process.spawn(shell("true"), env=ENV, log_path=log, **placed)  # type: ignore[arg-type]
    assert "serve.cores" in caught.value.hint
