"""The supervisor: starts one engine, waits for its first token, watches it, drains and stops it.

The same code runs in the foreground command and in the process behind a detached server. It is
the engine's parent, so the kernel ends the engine should the supervisor be killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deployer.durable import disk_error
from deployer.errors import DeployerError, ServerError, StoreError
from deployer.progress import SILENT, Progress
from deployer.serving.engine_log import EngineLog, turn_over
from deployer.serving.engine_run import TICK, Ending, EngineRun
from deployer.serving.health import Pulse
from deployer.serving.holding import counting, hold_name
from deployer.serving.identity import start_mark
from deployer.serving.notify import Notify
from deployer.serving.preflight import read_key
from deployer.serving.readiness import Endpoint
from deployer.serving.restarts import Restarts
from deployer.serving.spec import Spec
from deployer.serving.state import ServerFolder, ServerRecord


class Supervisor:
    """Runs one server until it is told to stop; `run` must be called in the main thread."""

    def __init__(
        self,
        spec: Spec,
        folder: ServerFolder,
        progress: Progress = SILENT,
        on_ready: Callable[[ServerRecord], None] | None = None,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.progress = progress
        self.on_ready = on_ready
        self._signals: list[int] = []
        self._told = False
        self._run: EngineRun | None = None
        self._pulse: Pulse | None = None
        self._notify = Notify.of(os.environ, os.getpid())
        self._log = EngineLog(folder.engine_log, spec.patience.log_bytes)
        self.record = ServerRecord(
            name=spec.name,
            endpoint=spec.url,
            supervisor_pid=os.getpid(),
            engine_pid=None,
            bundle=spec.bundle,
            log=str(folder.engine_log),
            state="starting",
            server=spec.server,
            model=spec.model,
            drain_timeout=spec.drain_timeout,
            marks={"supervisor": start_mark(os.getpid())},
        )

    def run(self) -> ServerRecord:
        """Serve until SIGTERM or SIGINT; a second one ends it at once.

        Raises ServerError where the name is taken, ReadinessTimeout, and ServerExited where the
        engine ends for good. The engine is gone whenever this returns or raises.
        """
        taken = name_taken(self.spec.name)
        with hold_name(self.folder.lock_file, taken), counting(self._signals):
            turn_over(self._log.path)
            self._publish()
            self._notify.watch(self._lives)
            try:
                self._serve()
            except BaseException as error:
                if self._run:
                    self._run.end()
                described = error.as_json() if isinstance(error, DeployerError) else None
                with contextlib.suppress(StoreError):
                    self._publish(state="failed", engine_pid=None, ready_at=None, error=described)
                raise
            self._publish(state="stopped", engine_pid=None, ready_at=None)
        return self.record

    def _serve(self) -> None:
        """Run the engine, and again with growing pauses when it ends for a passing cause."""
        restarts = Restarts(self.spec.patience)
        while (ending := self._run_engine(restarts)) is not None:
            pause = restarts.pause(ending.cause)
            if pause is None:
                self._publish(last_cause=ending.cause.name)
                raise ending.error
            name = ending.cause.name
            self.progress.warn(f"the server ended ({name}); it is started again in {pause:g} s")
            self._publish(
                state="restarting",
                engine_pid=None,
                ready_at=None,
                restarts=self.record.restarts + 1,
                last_cause=name,
            )
            if not self._pause(pause):
                return

    def _run_engine(self, restarts: Restarts) -> Ending | None:
        """Run the engine from a start to its end; None when we were told to stop."""
        endpoint = self._endpoint()
        run = EngineRun(self.spec, endpoint, self.folder, self._log)
        self._run = run
        marks = {**self.record.marks, "engine": start_mark(run.pid)}
        self._publish(state="starting", engine_pid=run.pid, marks=marks)
        with self.progress.step(f"Starting {self.spec.name} ({self.spec.server})") as step:
            ready = run.await_token(lambda: not self._signals, step.update)
        if ready:
            self._pulse = Pulse(endpoint, run.pid)
            self._became_ready(run)
            restarts.became_ready()
        while run.goes_on and ready and not self._signals:
            time.sleep(TICK)
        if not self._signals:
            return run.ending()
        if ready:
            self._publish(state="draining")
            run.drain(hurry=lambda: len(self._signals) > 1)
        else:
            run.end()
        return None

    def _endpoint(self) -> Endpoint:
        """Where to ask; the key is read again for each start, as the engine reads its keys."""
        spec = self.spec
        key = read_key(Path(spec.key_file), SILENT) if spec.key_file else None
        return Endpoint(spec.url, spec.port, spec.model, spec.health, spec.metrics, key)

    def _became_ready(self, run: EngineRun) -> None:
        seconds = round(run.seconds, 3)
        self._publish(state="ready", ready_seconds=seconds, ready_at=time.monotonic())
        if self.on_ready and self.record.restarts == 0:
            self.on_ready(self.record)

    def _lives(self) -> bool:
        """Whether all is well; a start and an end have time limits of their own."""
        return self.record.state != "ready" or self._pulse is None or self._pulse.beats()

    def _pause(self, seconds: float) -> bool:
        """Sleep; False as soon as we shall stop."""
        end = time.monotonic() + seconds
        while not self._signals and time.monotonic() < end:
            time.sleep(TICK)
        return not self._signals

    def _publish(self, **changes: Any) -> None:
        """Change the record. Raises StoreError where it cannot be written.

        Once somebody was told that the server is ready, a full disk is no reason to end it.
        """
        self.record = self.record.model_copy(update=changes)
        try:
            self.folder.write(self.record)
        except OSError as error:
            if not self._told:
                raise disk_error(error, self.folder.root) from error
            self.progress.warn(f"its record cannot be written: {error.strerror}")
        self._told = self._told or self.record.state == "ready"
        if "state" in changes:
            self._notify.tell_state(self.record)


def name_taken(name: str) -> ServerError:
    return ServerError(
        f"a server named {name} runs already",
        f"`deployer stop {name}` ends it; --name gives this one another name.",
    )
