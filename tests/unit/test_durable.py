"""Files written whole, locks freed, and trouble with the disk told in one sentence."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from deployer import durable
from deployer.durable import hold_lock, write_atomically
from deployer.errors import StoreError
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
