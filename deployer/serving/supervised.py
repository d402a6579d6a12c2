"""What runs under a supervisor of ours, a server or a deployment: its record and its folder.

The supervisor writes the record into the folder, and anybody may read it. Who the supervisor is
stands in it beyond the pid, so that no other process is taken for it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from pydantic import Field

from deployer.artifacts import Record
from deployer.durable import write_atomically
from deployer.errors import DeployerError, ReadinessTimeout, ServerError, ServerExited
from deployer.process import Child, clean_environment, spawn, tail
from deployer.serving.identity import start_mark

POLL_SECONDS = 0.05
_KINDS = {kind.__name__: kind for kind in (ServerExited, ReadinessTimeout)}


class SupervisedRecord(Record):
    """What all of them tell. `marks` identify processes beyond their pids.

    `ready_seconds` is the time from the start until it was ready, `ready_at` when that was, by the
    monotonic clock; `uptime_s` is filled in by who reads.
    """

    alive: ClassVar[frozenset[str]]
    """The states of one whose supervisor should run."""
    lost: ClassVar[Mapping[str, Any]] = {"state": "lost", "ready_at": None}
    """What is true once the supervisor died without saying goodbye."""

    name: str
    endpoint: str
    supervisor_pid: int
    log: str
    state: str
    ready_seconds: float | None = None
    uptime_s: float | None = None
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

    def signal(self, number: signal.Signals) -> None:
        """Signal the supervisor if it is still the process that the record means.

        Raises ServerError where it is another user's.
        """
        if not self.supervised:
            return
        try:
            os.kill(self.supervisor_pid, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise ServerError(
                f"{self.name} belongs to another user", "Stop it as the user who started it."
            ) from error

    def await_end(self, seconds: float) -> None:
        """Wait until the supervisor has ended, for `seconds` at most."""
        deadline = time.monotonic() + seconds
        while self.supervised and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


Kept = TypeVar("Kept", bound=SupervisedRecord)


@dataclass(frozen=True)
class SupervisedFolder(Generic[Kept]):
    """The files that all of them have."""

    root: Path

    kind: ClassVar[type[SupervisedRecord]]
    module: ClassVar[str]
    """What `python -m` runs as the supervisor of a folder."""

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
    def supervisor_log(self) -> Path:
        return self.root / "supervisor.log"

    def write(self, record: Kept) -> None:
        """Replace the record; a reader sees the old or the new one, never a part."""
        write_atomically(self.state_file, record.model_dump_json())

    def read(self) -> Kept | None:
        """The record as it was written, None where there is none."""
        try:
            return cast(Kept, self.kind.model_validate_json(self.state_file.read_bytes()))
        except (OSError, ValueError):
            return None

    def current(self) -> Kept | None:
        """The record with what only now can be known: lost or not, uptime."""
        record = self.read()
        if record is None or record.state not in record.alive:
            return record
        if not record.supervised:
            # The supervisor writes its last record just before it ends: look once more.
            record = self.read() or record
            return record.model_copy(update=record.lost if record.state in record.alive else {})
        uptime = None if record.ready_at is None else round(time.monotonic() - record.ready_at, 1)
        return record.model_copy(update={"uptime_s": uptime})

    def spawn_supervisor(self, *, outlive_us: bool) -> Child:
        """Start a supervisor for what `spec_file` says; it takes its children with it.

        Without `outlive_us` the kernel kills it when the thread that called this ends. Told to stop
        by SIGTERM it drains. What it says goes to `supervisor_log`.
        """
        self.supervisor_log.unlink(missing_ok=True)
        return spawn(
            (sys.executable, "-m", self.module, str(self.root)),
            env=clean_environment(),
            log_path=self.supervisor_log,
            cwd=self.root,
            outlive_us=outlive_us,
        )

    def started(
        self, child: Child, record: Kept | None, ended: bool, ready: Container[str] = ("ready",)
    ) -> Kept | None:
        """The record of one that is ready, None while it starts.

        `ended`: whether the child, its supervisor, had ended before the record was read. `ready`
        are the states it shall come to. Raises ServerExited, ReadinessTimeout or ServerError where
        it will not.
        """
        ours = record if record and record.supervisor_pid == child.pid else None
        if ours and ours.state in ready:
            return ours
        if ours and ours.state == "failed":
            raise self.error_of(ours.error)
        if ended:
            if ours and ours.state == "stopped":
                raise ServerError(f"{ours.name} was stopped before it was ready")
            raise self.error_of(None)
        return None

    def error_of(self, error: Mapping[str, Any] | None) -> DeployerError:
        """The error that a supervisor recorded, else one with the last words it wrote."""
        if error is None:
            words = tail(self.supervisor_log, 5)
            return ServerError(
                f"the supervisor of {self.root.name} ended: {words or 'it said nothing'}",
                f"Log: {self.supervisor_log}",
            )
        kind = _KINDS.get(str(error.get("type")), ServerError)
        return kind(str(error.get("message", "")), str(error.get("hint", "")))
