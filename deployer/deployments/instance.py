"""One server of a deployment: its own supervisor as our child, and the record that writes."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from deployer.deployments.pauses import Pauses
from deployer.deployments.reconcile import ENDED, Seen
from deployer.deployments.spec import PlannedServer
from deployer.deployments.state import DeployedRecord
from deployer.deployments.table import Standing
from deployer.errors import DeployerError, ServerError
from deployer.process import Child
from deployer.serving.spawning import ready_record, spawn_supervisor
from deployer.serving.state import ServerFolder, ServerRecord


class Instance:
    """One start of a server. Must be started from a thread that lives as long as we do."""

    def __init__(self, server: str, planned: PlannedServer, folder: ServerFolder) -> None:
        self.server = server
        self.planned = planned
        self.folder = folder
        self.routed = False
        self.retiring = False
        self.retired_at: float | None = None
        self.stopping = False
        self.state = "starting"
        self._child: Child | None = None
        self._record: ServerRecord | None = None
        self._stamp: tuple[int, ...] = ()
        self._pauses = Pauses()
        self._started = 0.0
        self._retry_at = 0.0
        self._lost = 0
        self._error: DeployerError | None = None

    def start(self) -> None:
        """Start its supervisor, which starts the engine; it is lost where that cannot be."""
        self._started = time.monotonic()
        self._record, self._stamp, self._error = None, (), None
        self.state = "starting"
        try:
            self._child = spawn_supervisor(self.planned.spec, self.folder, outlive_us=False)
        except (DeployerError, OSError) as error:
            self._child = None
            self.state = "lost"
            self._lose(error if isinstance(error, DeployerError) else ServerError(str(error)))

    def look(self) -> bool:
        """See how it is; True where its state is another one than before."""
        before = self.state
        if self._child is None or before in ENDED:
            return False
        ended = self._child.poll() is not None
        self._read_record()
        recorded = self._record.state if self._record else "starting"
        self.state = "lost" if ended and recorded not in ENDED else recorded
        if self.state in ENDED:
            self._see_the_end(self._child)
        return self.state != before

    def _see_the_end(self, child: Child) -> None:
        try:
            ready_record(child, self.folder)
        except DeployerError as error:
            self._error = error
        if self.state == "lost":
            self._lose(self._error)

    def _lose(self, error: DeployerError | None) -> None:
        """Note that its supervisor is gone, and when to start it again."""
        now = time.monotonic()
        self._error = error or ServerError("its supervisor was killed")
        self._lost += 1
        self._retry_at = now + self._pauses.after(now - self._started)

    def _read_record(self) -> None:
        """Read the record again if its file is another one; it counts if our child wrote it."""
        try:
            found = os.stat(self.folder.state_file)  # noqa: PTH116 (ten times a second)
        except OSError:
            return
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        record = self.folder.read()
        if record and self._child and record.supervisor_pid == self._child.pid:
            self._record = record

    @property
    def ended(self) -> bool:
        """Whether its supervisor is gone."""
        return self._child is None or self._child.poll() is not None

    @property
    def restarts(self) -> int:
        """How often its engine, or its supervisor, was started again."""
        return self._lost + (self._record.restarts if self._record else 0)

    @property
    def error(self) -> DeployerError:
        """Why it ended, told with the server's name."""
        found = self._error
        if found is None:
            return ServerError(f"server {self.server} ended", f"Log: {self.folder.engine_log}")
        return type(found)(f"server {self.server}: {found.message}", found.hint)

    @property
    def drain_timeout(self) -> float:
        return self.planned.spec.drain_timeout

    def stop(self) -> None:
        """Tell it to drain and end; told again, it ends at once."""
        self.stopping = True
        if self._child is not None:
            self._child.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End its supervisor, and with it the engine, at once."""
        if self._child is not None:
            self._child.signal(signal.SIGKILL)
            self._child.stop(grace=0.0)

    def clear(self) -> None:
        """Leave a record that says it was stopped, however it ended: its log is kept."""
        clear_record(self.folder)

    def seen(self) -> Seen:
        return Seen(
            state=self.state,
            routed=self.routed,
            retiring=self.retiring,
            retired_at=self.retired_at,
            stopping=self.stopping,
            retry_at=self._retry_at,
        )

    def standing(self) -> Standing:
        return Standing(self.server, self.planned, self.state, self.restarts, self.retiring)

    def describe(self) -> DeployedRecord:
        record = self._record
        return DeployedRecord(
            instance=self.planned.instance,
            state=self.state,
            endpoint=self.planned.spec.url,
            bundle=self.planned.spec.bundle,
            ready_seconds=record.ready_seconds if record else None,
            restarts=self.restarts,
            error=self._error.as_json() if self._error else None,
        )


def clear_record(folder: ServerFolder) -> None:
    """Take a server that has ended off the list of those that failed or were lost."""
    record = folder.read()
    if record is not None and record.state != "stopped":
        with contextlib.suppress(OSError):  # a full disk; then it stays on the list
            folder.write(record.model_copy(update=_STOPPED))


_STOPPED = {"state": "stopped", "engine_pid": None, "ready_at": None}
