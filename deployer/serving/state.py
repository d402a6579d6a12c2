"""What is known of a server, as `servers/NAME/state.json` holds it.

servers/NAME/
  state.json      the record below, replaced atomically by the supervisor
  spec.json       what the supervisor of a detached server was asked to run
  lock            held by the supervisor as long as it lives; tells that the name is taken
  load.json       how busy the engine is, replaced by the supervisor every few seconds
  engine.log      what the engine wrote; engine.log.1 and .2 are older parts
  supervisor.log  what the supervisor of a detached server wrote
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import ClassVar, Literal

from deployer.artifacts import Record
from deployer.errors import UsageError
from deployer.home import Home
from deployer.serving.identity import peak_rss, start_mark
from deployer.serving.supervised import SupervisedFolder, SupervisedRecord

State = Literal["starting", "ready", "restarting", "draining", "stopped", "failed", "lost"]
FRESH = 15.0
"""Seconds for which a measured load is shown."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ServerRecord(SupervisedRecord):
    """One server. `lost` means that its supervisor died without saying goodbye.

    `ready_seconds` is the time to the first token. `last_cause` says why the engine last ended by
    itself, or had to go. `marks` has the engine too. `status` fills in `peak_rss_bytes`,
    and where the engine tells them the requests that run and wait, and output tokens a second over
    the last minute.
    """

    alive: ClassVar[frozenset[str]] = frozenset({"starting", "ready", "restarting", "draining"})

    engine_pid: int | None
    bundle: str
    state: State
    server: str
    model: str
    restarts: int = 0
    last_cause: str | None = None
    peak_rss_bytes: int | None = None
    running: float | None = None
    waiting: float | None = None
    output_tokens_per_s: float | None = None

    @property
    def engine_runs(self) -> bool:
        mark = self.marks.get("engine")
        pid = self.engine_pid
        return pid is not None and mark is not None and start_mark(pid) == mark


ALIVE = ServerRecord.alive


class Load(Record):
    """How busy an engine was `at` a time of the monotonic clock, as its metrics told."""

    at: float
    running: float | None
    waiting: float | None
    output_tokens_per_s: float | None


class ServerFolder(SupervisedFolder[ServerRecord]):
    """The files of one server."""

    kind = ServerRecord
    module = "deployer.serving"

    @classmethod
    def of(cls, home: Home, name: str) -> ServerFolder:
        """The folder of a server; raises UsageError for a name that can be none."""
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot be the name of a server",
                "Use letters, digits, dots, hyphens and underscores, at most 64.",
            )
        return cls(home.servers / name)

    @property
    def load_file(self) -> Path:
        return self.root / "load.json"

    @property
    def engine_log(self) -> Path:
        return self.root / "engine.log"

    def current(self) -> ServerRecord | None:
        """The record with what only now can be known: lost or not, uptime, memory, load."""
        record = super().current()
        if record is None or record.state not in ALIVE:
            return record
        peak = peak_rss(record.engine_pid) if record.engine_pid and record.engine_runs else None
        return record.model_copy(update={"peak_rss_bytes": peak, **self._load()})

    def _load(self) -> dict[str, float | None]:
        """How busy the engine is, {} where that was not measured lately."""
        try:
            load = Load.model_validate_json(self.load_file.read_bytes())
        except (OSError, ValueError):
            return {}
        lately = 0 <= time.monotonic() - load.at < FRESH
        return load.model_dump(exclude={"at"}) if lately else {}
