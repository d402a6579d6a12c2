"""One run of an engine, from its start to its end; its supervisor makes as many as it takes."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from deployer.errors import DeployerError, ReadinessTimeout
from deployer.machine import oom_kills
from deployer.process import clean_environment, spawn
from deployer.serving import causes
from deployer.serving.causes import Cause
from deployer.serving.checkup import Checkup
from deployer.serving.engine_log import EngineLog
from deployer.serving.readiness import Endpoint, ask_until_ready, is_idle
from deployer.serving.spec import Spec
from deployer.serving.state import ServerFolder

TICK = 0.05
STOP_GRACE = 10.0
_STRAY = (
    "LLAMA_ARG_", "LLAMA_API_KEY", "AIP_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VLLM_",
    "OPENAI_API_KEY", "OMP_NUM_THREADS", "TORCH_COMPILE", "TORCHDYNAMO_", "TORCHINDUCTOR_",
    "TRITON_", "NOTIFY_SOCKET", "WATCHDOG_",
)  # fmt: skip
"""Beginnings of variables that would change the engine's settings behind the recipe's back."""


def engine_environment(extra: dict[str, str]) -> dict[str, str]:
    """A clean environment without variables the engine takes for settings, plus `extra`."""
    clean = clean_environment()
    return {**{k: v for k, v in clean.items() if not k.startswith(_STRAY)}, **extra}


@dataclass(frozen=True)
class Ending:
    """Why an engine ended, and the error to raise where it is not started again."""

    cause: Cause
    error: DeployerError


class EngineRun:
    """A running engine; made in the thread that waits for it, since it dies with that thread.

    Raises CommandError where the program cannot be started.
    """

    def __init__(
        self, spec: Spec, endpoint: Endpoint, folder: ServerFolder, log: EngineLog
    ) -> None:
        self._spec, self._endpoint, self._log = spec, endpoint, log
        self._started = time.monotonic()
        self._oom_kills = oom_kills()
        self._served = self._over = False
        self._missing = "it did not start"
        log.begin()
        self._child = spawn(
            spec.argv,
            env=engine_environment(spec.env),
            log_path=log.path,
            cpus=spec.cores,
            memory_node=spec.numa_node,
        )
        self._checkup = Checkup(spec, endpoint, folder, log, self._child.pid)
        self._checkup.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def goes_on(self) -> bool:
        """Whether the engine runs and nothing is found against it."""
        return self._child.poll() is None and self._checkup.verdict is None

    def await_token(self, wanted: Callable[[], bool], update: Callable[[float], None]) -> bool:
        """Wait for the first token; False where it does not come, in time or while `wanted`.

        The questions are asked in a thread, so that an engine's end and signals are seen at once.
        """
        deadline = self._started + self._spec.ready_timeout
        answers = deque([self._missing], maxlen=1)
        enough = threading.Event()

        def ask() -> None:
            for missing in ask_until_ready(self._endpoint, self.pid, deadline):
                answers.append(missing)
                if enough.is_set():
                    return

        threading.Thread(target=ask, daemon=True).start()
        while self.goes_on and wanted() and time.monotonic() <= deadline:
            self._missing = answers[0]
            if not self._missing:
                self._served = True
                self._checkup.became_ready()
                break
            update(round(self.seconds, 1))
            time.sleep(TICK)
        enough.set()
        return self._served

    def drain(self, hurry: Callable[[], bool]) -> None:
        """Let running requests finish, then stop the engine; at once when `hurry` says so."""
        self._checkup.end()
        drains = self._spec.drains
        deadline = time.monotonic() + self._spec.drain_timeout + (STOP_GRACE if drains else 0.0)
        if drains:
            self._child.signal(signal.SIGTERM)
        idle = 0
        while self._child.poll() is None and idle < 2:
            if hurry() or time.monotonic() >= deadline:
                return self.end()
            time.sleep(2 * TICK)
            if not drains:
                idle = idle + 1 if is_idle(self._endpoint) else 0
        self.end(grace=STOP_GRACE)
        return None

    def end(self, grace: float = 0.0) -> None:
        """End the engine and all it started: SIGTERM and `grace` seconds, then SIGKILL."""
        if self._over:
            return
        self._over = True
        self._checkup.end()
        if grace == 0.0:
            self._child.signal(signal.SIGKILL)
        self._child.stop(grace)

    def ending(self) -> Ending:
        """Why the engine ended, or must; it is gone when this returns."""
        status, verdict, seconds = self._child.poll(), self._checkup.verdict, self.seconds
        self.end()
        log, text = self._log.path, self._log.text()
        if status is not None:
            starved = oom_kills() > self._oom_kills
            cause = causes.explain(status, text, served=self._served, starved=starved)
            return Ending(cause, causes.exited(cause, status, log, text))
        if verdict is not None:
            return Ending(verdict, causes.exited(verdict, 0, log, text))
        error = ReadinessTimeout(
            f"{self._spec.name} was not ready after {seconds:.0f} s: {self._missing}",
            f"Raise serve.ready_timeout, or see {log}.",
        )
        return Ending(causes.NOT_READY, error)
