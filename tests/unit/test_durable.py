"""Files written whole, locks freed, and trouble with the disk told in one sentence."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from deployer import durable
from deployer.durable import full_disk_told, hold_lock, sweep, write_atomically
from deployer.errors import CommandError, StoreError
from deployer.progress import SILENT, Silent


class Listener(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_a_small_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, "old")
    write_atomically(path, json.dumps({"é": 1}))
    assert path.read_text(encoding="utf-8") == json.dumps({"é": 1})

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(durable, "flush", full)
    with pytest.raises(OSError, match="full"):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == json.dumps({"é": 1})
    assert list(tmp_path.iterdir()) == [path]


def test_what_dead_writers_left_is_deleted_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable.psutil, "pid_exists", lambda pid: pid == 12)
    kept = {".state.json.12", "state.json", ".hidden.json", "state.json.11", ".lock", "x.11"}
    for name in {*kept, ".state.json.11", ".spec.json.4194305"}:
        (tmp_path / name).write_text("{", encoding="utf-8")
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept
    sweep(tmp_path / "none")


def test_a_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    lock, listener = tmp_path / "locks" / "one", Listener()
    with pytest.raises(ValueError), hold_lock(lock, "it", listener):
        raise ValueError
    with hold_lock(lock, "it", listener):
        assert listener.notes == []


def test_who_waits_says_so_once(tmp_path: Path) -> None:
    lock, listener, held, go_on = tmp_path / "one", Listener(), threading.Event(), threading.Event()

    def first() -> None:
        with hold_lock(lock, "nobody", SILENT):
            held.set()
            go_on.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    assert held.wait(30)
    threading.Timer(0.1, go_on.set).start()
    with hold_lock(lock, "another build runs", listener):
        assert go_on.is_set()
    thread.join(30)
    assert listener.notes == ["Waiting: another build runs."]


def test_a_lock_that_cannot_be_made_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StoreError, match="cannot write to") as caught,
        hold_lock(tmp_path / "file" / "lock", "it", SILENT),
    ):
        pass
    assert "DEPLOYER_HOME" in caught.value.hint


def test_no_permission_is_told_as_such() -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/a/b")
    assert "cannot open /a/b: Permission denied" in durable.disk_error(error, Path("/a")).message


def fail(log: Path, returncode: int | None, tail: str = "") -> None:
    log.write_text(tail, encoding="utf-8")
    raise CommandError("it failed", returncode=returncode, log_path=log, tail=tail)


@pytest.mark.parametrize(
    ("returncode", "tail"),
    [(errno.ENOSPC, ""), (1, "write: No space left on device"), (101, "io error (os error 28)"),
     (1, "Disk quota exceeded")],
)  # fmt: skip
def test_a_program_that_filled_the_disk_is_told_from_one_that_failed(
    tmp_path: Path, returncode: int, tail: str
) -> None:
    with (
        pytest.raises(StoreError, match="the disk filled up while llama-quantize was at work") as e,
        full_disk_told("llama-quantize"),
    ):
        fail(tmp_path / "log", returncode, tail)
    assert "DEPLOYER_HOME" in e.value.hint
    assert str(tmp_path / "log") in e.value.hint


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_where_a_program_tells_no_cause_the_disk_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(**_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(durable.tempfile, "TemporaryFile", full)
    wanted = CommandError if code == errno.EACCES else StoreError
    with pytest.raises(wanted), full_disk_told("llama-quantize"):
        fail(tmp_path / "log", -7, "iostream error")


@pytest.mark.parametrize("returncode", [1, None])
def test_what_failed_for_another_reason_stays_as_it_is(
    tmp_path: Path, returncode: int | None
) -> None:
    with pytest.raises(CommandError, match="it failed"), full_disk_told("llama-quantize"):
        fail(tmp_path / "log", returncode, "Segmentation fault")
    assert [each.name for each in tmp_path.iterdir()] == ["log"]
