"""What is known of a deployment, as `deployments/NAME/state.json` holds it.

deployments/NAME/
  state.json      the record below, replaced atomically by the supervisor
  spec.json       what the supervisor was asked to run; `deployer reload` replaces it
  applied.json    what it runs: the last spec that was carried out whole
  table.json      what the gateway goes by
  lock            held by the supervisor as long as it lives; tells that the name is taken
  reload.lock     held by a reload
  supervisor.log  what the supervisor of a detached deployment wrote
  gateway.log     what the gateway wrote; gateway.log.1 and .2 are older
  events.jsonl    the event log
"""

from __future__ import annotations

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
from deployer.serving.identity import start_mark

State = Literal["starting", "ready", "degraded", "draining", "stopped", "failed", "lost"]
ALIVE: frozenset[str] = frozenset({"starting", "ready", "degraded", "draining"})
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


class DeployedRecord(Record):
    """One server of a deployment: the name of its process, and how that is.

    `state` is the server record's. `restarts` counts its engine's and its supervisor's.
    """

    instance: str
    state: str
    endpoint: str
    bundle: str
    ready_seconds: float | None = None
    restarts: int = 0
    error: dict[str, Any] | None = None


class Reload(Record):
    """The last reload: the generation that was asked for, and what became of it."""

    generation: int
    state: Literal["under way", "done", "failed"]
    starting: dict[str, DeployedRecord] = Field(default_factory=dict)
    error: dict[str, Any] | None = None


class DeploymentRecord(Record):
    """One deployment. `degraded`: it serves, but not with all of its servers.

    `generation` is that of what runs. `retiring` names processes that finish what they have.
    `keys`: whether clients need one. `marks` identify the supervisor beyond its pid. `uptime_s` is
    filled in by `status`.
    """

    name: str
    endpoint: str
    supervisor_pid: int
    gateway_pid: int | None
    state: State
    generation: int
    file: str | None
    models: tuple[str, ...]
    keys: bool
    log: str
    events: str
    servers: dict[str, DeployedRecord] = Field(default_factory=dict)
    retiring: tuple[str, ...] = ()
    gateway_restarts: int = 0
    ready_seconds: float | None = None
    uptime_s: float | None = None
    drain_timeout: float = 0.0
    ready_at: float | None = None
    marks: dict[str, str | None] = Field(default_factory=dict)
    reload: Reload | None = None
    error: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"marks", "ready_at", "drain_timeout"})

    @property
    def supervised(self) -> bool:
        """Whether the supervisor of this record still runs."""
        mark = self.marks.get("supervisor")
        return mark is not None and start_mark(self.supervisor_pid) == mark


@dataclass(frozen=True)
class DeploymentFolder:
    """The files of one deployment."""

    root: Path

    @classmethod
    def of(cls, home: Home, name: str) -> DeploymentFolder:
        """The folder of a deployment; raises UsageError for a name that can be none."""
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot be the name of a deployment",
                "Use small letters, digits, hyphens and underscores, at most 32.",
            )
        return cls(home.deployments / name)

    @property
    def state_file(self) -> Path:
        return self.root / "state.json"

    @property
    def spec_file(self) -> Path:
        return self.root / "spec.json"

    @property
    def applied_file(self) -> Path:
        return self.root / "applied.json"

    @property
    def table_file(self) -> Path:
        return self.root / "table.json"

    @property
    def lock_file(self) -> Path:
        return self.root / "lock"

    @property
    def reload_lock(self) -> Path:
        return self.root / "reload.lock"

    @property
    def supervisor_log(self) -> Path:
        return self.root / "supervisor.log"

    @property
    def gateway_log(self) -> Path:
        return self.root / "gateway.log"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    def write(self, record: DeploymentRecord) -> None:
        """Replace the record; a reader sees the old or the new one, never a part."""
        write_atomically(self.state_file, record.model_dump_json())

    def read(self) -> DeploymentRecord | None:
        """The record as it was written, None where there is none."""
        try:
            return DeploymentRecord.model_validate_json(self.state_file.read_bytes())
        except (OSError, ValueError):
            return None

    def current(self) -> DeploymentRecord | None:
        """The record with what only now can be known: lost or not, uptime."""
        record = self.read()
        if record is None or record.state not in ALIVE:
            return record
        if not record.supervised:
            # The supervisor writes its last record just before it ends: look once more.
            record = self.read() or record
            return record if record.state not in ALIVE else record.model_copy(update=_LOST)
        uptime = None if record.ready_at is None else round(time.monotonic() - record.ready_at, 1)
        return record.model_copy(update={"uptime_s": uptime})


_LOST = {"state": "lost", "ready_at": None, "gateway_pid": None}
