"""Servers that run: list them, read their logs, stop them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from deployer.errors import UsageError
from deployer.home import Home
from deployer.progress import SILENT, Progress
from deployer.serving.engine_log import older
from deployer.serving.state import ALIVE, ServerFolder, ServerRecord
from deployer.serving.supervised import POLL_SECONDS

FOLLOW_SECONDS = 0.2
MARGIN = 15.0
"""Seconds beyond the drain timeout before a supervisor is taken for hung."""
_BLOCK = 65536


def status(home: Home, name: str | None = None) -> list[ServerRecord]:
    """Every server that runs, failed or was lost, by name; with `name` that one alone.

    A server that was stopped is not listed. Raises UsageError where `name` is none.
    """
    if name is not None:
        return [_known(home, name)]
    names = sorted(p.name for p in home.servers.iterdir()) if home.servers.is_dir() else []
    records = [ServerFolder(home.servers / name).current() for name in names]
    return [record for record in records if record and record.state != "stopped"]


def stop(home: Home, name: str, progress: Progress = SILENT) -> ServerRecord:
    """Drain and stop a server and give its last record, `state` "stopped".

    A supervisor that does not end in time is killed, and its engine with it. A failed or lost
    server is cleared from the list. Raises UsageError where there is no such server, ServerError
    where it cannot be stopped.
    """
    folder = ServerFolder.of(home, name)
    record = _known(home, name)
    if record.state == "stopped":
        raise _unknown(home, name)
    if record.state in ALIVE:
        with progress.step(f"Stopping {name}"):
            record.signal(signal.SIGTERM)
            record.await_end(record.drain_timeout + MARGIN)
    _kill(record)
    last = folder.read() or record
    stopped = last.model_copy(update={"state": "stopped", "engine_pid": None, "ready_at": None})
    folder.write(stopped)
    return stopped


def _kill(record: ServerRecord) -> None:
    """Kill what is left: the supervisor, the engine, and what that has started."""
    ran = record.engine_runs
    record.signal(signal.SIGKILL)
    deadline = time.monotonic() + 2.0
    while (record.supervised or record.engine_runs) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if ran and record.engine_pid is not None:  # its group keeps its number while anybody is in it
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(record.engine_pid, signal.SIGKILL)


def logs(home: Home, name: str, lines: int = 50, follow: bool = False) -> Iterator[str]:
    """The last `lines` lines of a server's log, without line ends; `follow` goes on for good.

    Following ends once the server has. Raises UsageError where there is no such server.
    """
    _known(home, name)
    folder = ServerFolder.of(home, name)

    def runs() -> bool:
        record = folder.current()
        return record is not None and record.state in ALIVE

    return read_lines(folder.engine_log, lines, follow, runs)


def read_lines(path: Path, lines: int, follow: bool, runs: Callable[[], bool]) -> Iterator[str]:
    """The last `lines` lines of a log; `follow` goes on for as long as its writer `runs`."""
    position = _start_of_tail(path, lines)
    rest = b""
    while True:
        ended = not runs()
        chunk, position = _read_from(path, position)
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
        if not chunk and (ended or not follow):
            break
        if not chunk:
            time.sleep(FOLLOW_SECONDS)
    if rest:
        yield rest.decode("utf-8", "replace")


def _read_from(path: Path, position: int) -> tuple[bytes, int]:
    """At most one block from `position`, and the position behind it.

    A log that is shorter than that was moved aside meanwhile: what is unread of it comes first.
    """
    try:
        with path.open("rb") as log:
            if log.seek(0, os.SEEK_END) < position:
                if rest := _rest(older(path, 1), position):
                    return rest, 0
                position = 0
            log.seek(position)
            chunk = log.read(_BLOCK)
    except OSError:
        return b"", position
    return chunk, position + len(chunk)


def _rest(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as log:
            log.seek(position)
            return log.read()
    except OSError:
        return b""


def _start_of_tail(path: Path, lines: int) -> int:
    """Where the last `lines` lines of a file start; reads blocks from its end, however large."""
    if lines <= 0:
        return path.stat().st_size if path.exists() else 0
    try:
        with path.open("rb") as log:
            position = log.seek(0, os.SEEK_END)
            starts: deque[int] = deque(maxlen=1)
            missing = lines + _ends_with_newline(log)
            while position > 0 and missing > 0:
                size = min(_BLOCK, position)
                position -= size
                log.seek(position)
                block = log.read(size)
                at = len(block)
                while missing > 0 and (at := block.rfind(b"\n", 0, at)) >= 0:
                    missing -= 1
                    starts.append(position + at + 1)
            return starts[0] if missing == 0 else 0
    except OSError:
        return 0


def _ends_with_newline(log: IO[bytes]) -> bool:
    """Whether a file's last line is whole; leaves the position wherever it comes to be."""
    end = log.seek(0, os.SEEK_END)
    log.seek(max(0, end - 1))
    return log.read(1) == b"\n"


def _known(home: Home, name: str) -> ServerRecord:
    record = ServerFolder.of(home, name).current()
    if record is None:
        raise _unknown(home, name)
    return record


def _unknown(home: Home, name: str) -> UsageError:
    running = [record.name for record in status(home)]
    hint = (
        f"There are: {', '.join(running)}." if running else "No server runs; see `deployer serve`."
    )
    return UsageError(f"there is no server named {name}", hint)
