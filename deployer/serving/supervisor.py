"""The supervisor: starts one engine, waits for its first token, watches it, drains and stops it.

The same code runs in the foreground command and in the process behind a detached server. It is
the engine's parent, so the kernel ends the engine should the supervisor be killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock

from deployer.errors import DeployerError, ReadinessTimeout, ServerError
from deployer.process import Child, clean_environment, spawn
from deployer.progress import SILENT, Progress
from deployer.serving import causes
from deployer.serving.health import Pulse
from deployer.serving.identity import start_mark
from deployer.serving.notify import Notify
from deployer.serving.preflight import read_key
from deployer.serving.readiness import Endpoint, ask_until_ready, is_idle
from deployer.serving.state import ServerFolder, ServerRecord

TICK = 0.05
RESTARTS = 3
RESTART_WINDOW = 60.0
STOP_GRACE = 10.0
_STRAY = (
    "LLAMA_ARG_", "LLAMA_API_KEY", "AIP_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VLLM_",
    "OPENAI_API_KEY", "OMP_NUM_THREADS", "TORCH_COMPILE", "TORCHDYNAMO_", "TORCHINDUCTOR_",
    "TRITON_", "NOTIFY_SOCKET", "WATCHDOG_",
)  # fmt: skip
"""Beginnings of variables that would change the engine's settings behind the recipe's back."""


@dataclass(frozen=True)
class Spec:
    """All a supervisor must know, as JSON in `spec.json`; holds no secret.

    `argv` is complete and `env` is added to a clean environment. Timeouts are in seconds.
    """

    name: str
    server: str
    argv: tuple[str, ...]
    url: str
    port: int
    model: str
    bundle: str
    ready_timeout: float
    drain_timeout: float
    drains: bool
    health: str | None
    metrics: str | None
    key_file: str | None = None
    env: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Spec:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "argv": tuple(values["argv"])})


def engine_environment(extra: dict[str, str]) -> dict[str, str]:
    """A clean environment without variables the engine takes for settings, plus `extra`."""
    clean = clean_environment()
    return {**{k: v for k, v in clean.items() if not k.startswith(_STRAY)}, **extra}


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
        self._signals = 0
        self._child: Child | None = None
        self._pulse: Pulse | None = None
        self._notify = Notify.of(os.environ, os.getpid())
        self._log_start = 0
        key = read_key(Path(spec.key_file), SILENT) if spec.key_file else None
        self._endpoint = Endpoint(spec.url, spec.port, spec.model, spec.health, spec.metrics, key)
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
        with self._name_lock(), self._signal_handlers():
            if self.folder.engine_log.exists():
                self.folder.engine_log.replace(self.folder.engine_log.with_suffix(".log.1"))
            self._publish()
            self._notify.watch(self._lives)
            try:
                self._serve()
            except BaseException as error:
                self._end_engine()
                described = error.as_json() if isinstance(error, DeployerError) else None
                self._publish(state="failed", engine_pid=None, ready_at=None, error=described)
                raise
            self._publish(state="stopped", engine_pid=None, ready_at=None)
        return self.record

    def _serve(self) -> None:
        """Start the engine, and again with growing pauses when it ends for a passing cause."""
        restarts: list[float] = []
        while True:
            ready = self._start()
            returncode = self._watch() if ready else self._child_status()
            if self._signals or returncode is None:  # told to stop
                return self._drain() if ready else self._end_engine()
            text = causes.log_text(self.folder.engine_log, self._log_start)
            cause = causes.explain(returncode, text)
            self._end_engine()
            now = time.monotonic()
            restarts = [t for t in restarts if now - t < RESTART_WINDOW]
            served_before = self.record.ready_seconds is not None
            if not served_before or not cause.retry or len(restarts) >= RESTARTS:
                raise causes.exited(cause, returncode, self.folder.engine_log, text)
            restarts.append(now)
            self.progress.warn(f"the server ended ({cause.name}); it is started again")
            self._publish(
                state="restarting",
                engine_pid=None,
                ready_at=None,
                restarts=self.record.restarts + 1,
            )
            if not self._pause(0.5 * 2 ** len(restarts)):
                return None

    def _start(self) -> bool:
        """Start the engine and wait for its first token; False where it ended or we shall stop.

        Raises ReadinessTimeout.
        """
        log = self.folder.engine_log
        self._log_start = log.stat().st_size if log.exists() else 0
        started = time.monotonic()
        child = spawn(self.spec.argv, env=engine_environment(self.spec.env), log_path=log)
        self._child = child
        marks = {**self.record.marks, "engine": start_mark(child.pid)}
        self._publish(state="starting", engine_pid=child.pid, marks=marks)
        with self.progress.step(f"Starting {self.spec.name} ({self.spec.server})") as step:
            missing = self._await_token(child, started, step.update)
        if missing is None:
            return False
        seconds = time.monotonic() - started
        if missing:
            raise ReadinessTimeout(
                f"{self.spec.name} was not ready after {seconds:.0f} s: {missing}",
                f"Raise serve.ready_timeout, or see {log}.",
            )
        self._pulse = Pulse(self._endpoint, child.pid)
        self._publish(state="ready", ready_seconds=round(seconds, 3), ready_at=time.monotonic())
        if self.on_ready and self.record.restarts == 0:
            self.on_ready(self.record)
        return True

    def _await_token(
        self, child: Child, started: float, update: Callable[[float], None]
    ) -> str | None:
        """Empty once ready, else what is missing; None where it ended or we shall stop.

        The questions are asked in a thread, so that an engine's end and signals are seen at once.
        """
        deadline = started + self.spec.ready_timeout
        answers = deque(["it did not start"], maxlen=1)

        def ask() -> None:
            answers.extend(ask_until_ready(self._endpoint, child.pid, deadline))

        threading.Thread(target=ask, daemon=True).start()
        while child.poll() is None and not self._signals:
            missing = answers[0]
            if not missing or time.monotonic() > deadline:
                return missing
            update(round(time.monotonic() - started, 1))
            time.sleep(TICK)
        return None

    def _watch(self) -> int | None:
        """Wait for the engine's end (its exit status) or a signal to us (None)."""
        while not self._signals:
            status = self._child_status()
            if status is not None:
                return status
            time.sleep(TICK)
        return None

    def _child_status(self) -> int | None:
        return self._child.poll() if self._child else None

    def _lives(self) -> bool:
        """Whether all is well; a start and an end have time limits of their own."""
        return self.record.state != "ready" or self._pulse is None or self._pulse.beats()

    def _pause(self, seconds: float) -> bool:
        """Sleep; False as soon as we shall stop."""
        end = time.monotonic() + seconds
        while not self._signals and time.monotonic() < end:
            time.sleep(TICK)
        return not self._signals

    def _drain(self) -> None:
        """Let running requests finish, then stop the engine; at once at a second signal."""
        assert self._child is not None
        self._publish(state="draining")
        deadline = time.monotonic() + self.spec.drain_timeout
        if self.spec.drains:
            self._child.signal(signal.SIGTERM)
            deadline += STOP_GRACE
        idle = 0
        while self._child_status() is None and self._signals == 1 and idle < 2:
            if time.monotonic() >= deadline:
                break
            time.sleep(2 * TICK)
            if not self.spec.drains:
                idle = idle + 1 if is_idle(self._endpoint) else 0
        hurried = self._signals > 1 or time.monotonic() >= deadline
        self._end_engine(grace=0.0 if hurried else STOP_GRACE)

    def _end_engine(self, grace: float = 0.0) -> None:
        """End the engine and all it started: SIGTERM and `grace` seconds, then SIGKILL."""
        if self._child is None:
            return
        if grace == 0.0:
            self._child.signal(signal.SIGKILL)
        self._child.stop(grace)
        self._child = None

    def _publish(self, **changes: Any) -> None:
        self.record = self.record.model_copy(update=changes)
        self.folder.write(self.record)
        if "state" in changes:
            self._notify.tell_state(self.record)

    @contextlib.contextmanager
    def _name_lock(self) -> Iterator[None]:
        """Hold the name; the kernel frees it however this process ends."""
        self.folder.root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.folder.lock_file)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise name_taken(self.spec.name) from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _signal_handlers(self) -> Iterator[None]:
        def count(_number: int, _frame: object) -> None:
            self._signals += 1

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, count) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def name_taken(name: str) -> ServerError:
    return ServerError(
        f"a server named {name} runs already",
        f"`deployer stop {name}` ends it; --name gives this one another name.",
    )
