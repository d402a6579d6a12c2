"""Logs that a program holds open are bounded, and whoever follows one loses no line."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.serving import control
from deployer.serving.engine_log import KEPT, EngineLog, cut, older, turn_over


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


@pytest.fixture
def engine(path: Path) -> Iterator[object]:
    """The program that writes, with the log open as `spawn` opens it."""
    with path.open("ab", buffering=0) as stream:
        yield stream


def test_a_log_is_cut_under_the_program_that_writes_it(path: Path, engine: object) -> None:
    write = engine.write  # type: ignore[attr-defined]
    for part in range(KEPT + 2):
        write(b"%d" % part * 100 + b"\n")
        assert cut(path, 100)
        write(b"after\n")
        assert path.read_bytes() == b"after\n"
        assert not cut(path, 100)
    assert older(path, 1).read_bytes().startswith(b"after\n333")
    assert older(path, 2).read_bytes().startswith(b"after\n222")
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "engine.log", "engine.log.1", "engine.log.2",
    ]  # fmt: skip


def test_a_full_disk_costs_the_old_text_and_not_the_bound(
    path: Path, engine: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    engine.write(b"x" * 200)  # type: ignore[attr-defined]
    assert cut(path, 100)
    assert path.read_bytes() == b""
    assert not older(path, 1).exists()


def test_a_new_start_moves_the_log_of_the_one_before(path: Path) -> None:
    turn_over(path)  # nothing there yet
    for start in range(4):
        turn_over(path)
        path.write_text(f"start {start}\n")
    assert [older(path, n).read_text() for n in (1, 2)] == ["start 2\n", "start 1\n"]
    assert not older(path, 3).exists()


def test_the_text_of_a_start_is_its_own_whatever_was_cut(path: Path, engine: object) -> None:
    write = engine.write  # type: ignore[attr-defined]
    log = EngineLog(path, 1000)
    assert EngineLog(path.with_name("absent"), 1000).text() == ""
    write(b"old\n")
    log.begin()
    write(b"new\n")
    assert log.text() == "new\n"
    write(b"x" * 2000)
    log.bound()
    write(b"newest\n")
    assert log.text() == "newest\n"


def test_following_goes_on_across_a_cut(path: Path, engine: object) -> None:
    write = engine.write  # type: ignore[attr-defined]
    write(b"one\ntwo\n")
    chunk, position = control._read_from(path, 0)
    assert chunk == b"one\ntwo\n"
    write(b"three\n" * 20)
    assert cut(path, 100)
    write(b"four\n")
    rest, position = control._read_from(path, position)
    assert rest == b"three\n" * 20
    chunk, position = control._read_from(path, position)
    assert (chunk, position) == (b"four\n", 5)


def test_following_goes_on_with_the_new_log_where_the_old_one_is_gone(path: Path) -> None:
    path.write_bytes(b"new\n")
    assert control._read_from(path, 100) == (b"new\n", 4)
