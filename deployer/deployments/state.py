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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from deployer.artifacts import Record
from deployer.errors import UsageError
from deployer.home import Home
from deployer.serving.supervised import SupervisedFolder, SupervisedRecord

State = Literal["starting", "ready", "degraded", "draining", "stopped", "failed", "lost"]
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


class DeploymentRecord(SupervisedRecord):
    """One deployment. `degraded`: it serves, but not with all of its servers.

    `generation` is that of what runs. `retiring` names processes that finish what they have.
    `keys`: whether clients need one.
    """

    alive: ClassVar[frozenset[str]] = frozenset({"starting", "ready", "degraded", "draining"})
    lost: ClassVar[Mapping[str, Any]] = {**SupervisedRecord.lost, "gateway_pid": None}

    gateway_pid: int | None
    state: State
    generation: int
    file: str | None
    models: tuple[str, ...]
    keys: bool
    events: str
    servers: dict[str, DeployedRecord] = Field(default_factory=dict)
    retiring: tuple[str, ...] = ()
    gateway_restarts: int = 0
    reload: Reload | None = None


ALIVE = DeploymentRecord.alive


class DeploymentFolder(SupervisedFolder[DeploymentRecord]):
    """The files of one deployment."""

    kind = DeploymentRecord
    module = "deployer.deployments"

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
    def applied_file(self) -> Path:
        return self.root / "applied.json"

    @property
    def table_file(self) -> Path:
        return self.root / "table.json"

    @property
    def reload_lock(self) -> Path:
        return self.root / "reload.lock"

    @property
    def gateway_log(self) -> Path:
        return self.root / "gateway.log"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"
