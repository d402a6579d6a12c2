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

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from deployer.artifacts import Record
from deployer.durable import write_atomically
from deployer.errors import UsageError
from deployer.home import Home
from deployer.serving.identity import peak_rss, start_mark

State = Literal["starting", "ready", "restarting", "draining", "stopped", "failed", "lost"]
ALIVE: frozenset[str] = frozenset({"starting", "ready", "restarting", "draining"})
FRESH = 15.0
"""Seconds for which a measured load is shown."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ServerRecord(Record):
    """One server. `lost` means that its supervisor died without saying goodbye.

    `ready_seconds` is the time from the start to the first token. `last_cause` says why the engine
    last ended by itself, or had to go. `marks` identify the supervisor and the engine beyond their
    pids. `status` fills in `uptime_s`, `peak_rss_bytes`, and where the engine tells them the
    requests that run and wait, and output tokens a second over the last minute.
    """

    name: str
    endpoint: str
    supervisor_pid: int
    engine_pid: int | None
    bundle: str
    log: str
    state: State
    server: str
    model: str
    restarts: int = 0
    last_cause: str | None = None
    ready_seconds: float | None = None
    uptime_s: float | None = None
    peak_rss_bytes: int | None = None
    running: float | None = None
    waiting: float | None = None
    output_tokens_per_s: float | None = None
    drain_timeout: float = 0.0
    ready_at: float | None = None
    marks: dict[str, str | None] = Field(default_factory=dict)
    error: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"marks", "ready_at", "drain_timeout"})

    @property
    def supervised(self) -> bool:
        """Whether the supervisor of this record still runs."""
        mark = self.marks.get("supervisor")
        return mark is not None and start_mark(self.supervisor_pid) == mark

    @property
    def engine_runs(self) -> bool:
        mark = self.marks.get("engine")
        pid = self.engine_pid
        return pid is not None and mark is not None and start_mark(pid) == mark


class Load(Record):
    """How busy an engine was `at` a time of the monotonic clock, as its metrics told."""

    at: float
    running: float | None
    waiting: float | None
    output_tokens_per_s: float | None


@dataclass(frozen=True)
class ServerFolder:
    """The files of one server."""

    root: Path

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
    def state_file(self) -> Path:
        return self.root / "state.json"

    @property
    def spec_file(self) -> Path:
        return self.root / "spec.json"

    @property
    def lock_file(self) -> Path:
        return self.root / "lock"

    @property
    def load_file(self) -> Path:
        return self.root / "load.json"

    @property
    def engine_log(self) -> Path:
        return self.root / "engine.log"

    @property
    def supervisor_log(self) -> Path:
        return self.root / "supervisor.log"

    def write(self, record: ServerRecord) -> None:
        """Replace the record; a reader sees the old or the new one, never a part."""
        write_atomically(self.state_file, json.dumps(record.model_dump(mode="json")))

    def read(self) -> ServerRecord | None:
        """The record as it was written, None where there is none."""
        try:
            return ServerRecord.model_validate_json(self.state_file.read_bytes())
        except (OSError, ValueError):
            return None

    def current(self) -> ServerRecord | None:
        """The record with what only now can be known: lost or not, uptime, peak memory."""
        record = self.read()
        if record is None or record.state not in ALIVE:
            return record
        if not record.supervised:
            # The supervisor writes its last record just before it ends: look once more.
            record = self.read() or record
            return record if record.state not in ALIVE else record.model_copy(update=_LOST)
        uptime = None if record.ready_at is None else round(time.monotonic() - record.ready_at, 1)
        peak = peak_rss(record.engine_pid) if record.engine_pid and record.engine_runs else None
        seen = {"uptime_s": uptime, "peak_rss_bytes": peak, **self._load()}
        return record.model_copy(update=seen)

    def _load(self) -> dict[str, float | None]:
        """How busy the engine is, {} where that was not measured lately."""
        try:
            load = Load.model_validate_json(self.load_file.read_bytes())
        except (OSError, ValueError):
            return {}
        lately = 0 <= time.monotonic() - load.at < FRESH
        return load.model_dump(exclude={"at"}) if lately else {}


_LOST = {"state": "lost", "ready_at": None}
