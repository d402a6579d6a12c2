"""The event log: whole lines, put aside in time, never in the way."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deployer.gateway import events
from deployer.gateway.events import EventLog


def now() -> datetime:
    return datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_an_event_is_one_line_with_its_time(path: Path) -> None:
    log = EventLog(path, now=now)
    log.write("server_down", server="q4", reasons=("not_ready",), where=Path("x"))
    log.write("server_up", server="q4", detail="two\nlines — é")
    assert lines(path) == [
        {"time": "2026-01-31T12:00:00.123Z", "event": "server_down", "server": "q4",
         "reasons": ["not_ready"], "where": "x"},
        {"time": "2026-01-31T12:00:00.123Z", "event": "server_up", "server": "q4",
         "detail": "two\nlines — é"},
    ]  # fmt: skip


def test_a_long_text_is_cut(path: Path) -> None:
    EventLog(path).write("server_failed", cause="x" * 100_000)
    assert len(str(lines(path)[0]["cause"])) == events.LONGEST


def test_the_log_is_put_aside_and_the_oldest_deleted(path: Path) -> None:
    logs = EventLog(path, limit=300), EventLog(path, limit=300)
    for number in range(60):
        logs[number % 2].write("e", number=number, filling="x" * 40)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == [
        "events.jsonl", "events.jsonl.1", "events.jsonl.2", "events.jsonl.3",
    ]  # fmt: skip
    assert all(file.stat().st_size <= 300 for file in files)
    told = [line["number"] for file in (*files[:0:-1], files[0]) for line in lines(file)]
    assert told == list(range(60 - len(told), 60))


def test_a_full_disk_stops_nothing_and_is_told_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(path)
    log.write("first")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        log.write("lost")
        log.write("lost too")
    assert log.dropped == 2
    log.write("last")
    log.write("really last")
    assert [(line["event"], line.get("dropped")) for line in lines(path)] == [
        ("first", None), ("last", 2), ("really last", None),
    ]  # fmt: skip


def test_a_line_that_was_cut_short_does_not_spoil_the_next(path: Path) -> None:
    path.write_text('{"event": "ha', encoding="utf-8")
    EventLog(path).write("whole")
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[1])["event"] == "whole"


def test_what_is_no_file_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    log = EventLog(path)
    log.write("lost")
    path.unlink()
    path.mkdir()
    log.write("lost")
    assert log.dropped == 2
