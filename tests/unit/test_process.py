"""The parts of process.py that start nothing; the rest is in tests/integration/test_process.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer import process


def test_hostile_variables_do_not_reach_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_PRELOAD", "MAKEFLAGS"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("LANG", "C.UTF-8")
    env = process.clean_environment({"EXTRA": "1", "PYTHONPATH": "ours"})
    assert env["EXTRA"] == "1"
    assert env["LANG"] == "C.UTF-8"
    assert env["PYTHONPATH"] == "ours"
    assert not {"PYTHONHOME", "VIRTUAL_ENV", "LD_PRELOAD", "MAKEFLAGS"} & set(env)


def test_a_program_is_found_or_not() -> None:
    found = process.which("sh")
    assert found is not None
    assert found.name == "sh"
    assert process.which("no-such-program-at-all") is None


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"line %d \xff\n" % n for n in range(100)))
    lines = process.tail(log, 3).splitlines()
    assert [line.split(" \ufffd")[0] for line in lines] == ["line 97", "line 98", "line 99"]
    assert len(process.tail(log).splitlines()) == process.TAIL_LINES
    assert process.tail(tmp_path / "absent") == ""


def test_the_tail_of_a_huge_log_reads_only_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stream:
        stream.truncate(10**11)
        stream.seek(0, 2)
        stream.write(b"\nlast line\n")
    assert process.tail(log, 1) == "last line"
