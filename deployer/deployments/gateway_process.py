"""The gateway's process: started, watched, and started again when it ends or no longer answers.

The listening socket is ours and inherited, so while there is no gateway connections wait in the
kernel's queue and are not refused.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import httpx

from deployer.deployments.pauses import Pauses
from deployer.errors import DeployerError
from deployer.process import Child, clean_environment, spawn, tail
from deployer.serving.engine_log import turn_over

ASK_SECONDS = 1.0
HURRY_SECONDS = 0.1
ANSWER_SECONDS = 5.0
STALE_SECONDS = 10.0
"""How long its word that it is healthy holds."""
HUNG_SECONDS = 30.0
"""Without any answer for so long it is taken for hung, however busy it may be."""


class GatewayProcess:
    """One gateway. Must be started from a thread that lives as long as we do.

    `generation` is that of the table it goes by, `expected` that of the one it was given.
    """

    def __init__(self, folder: Path, log: Path, listening: socket.socket, url: str) -> None:
        self._folder = folder
        self._log = log
        self._listening = listening
        self._url = url
        self._child: Child | None = None
        self._pauses = Pauses(first=0.2, longest=10.0)
        self._started = 0.0
        self._next_start = 0.0
        self._answered = 0.0
        self._healthy = False
        self._ended = threading.Event()
        self.starts = 0
        self.was_healthy = False
        self.generation = 0
        self.expected = 0

    def start(self) -> None:
        """Start it, and ask it for its health from now on."""
        turn_over(self._log)
        self._spawn()
        threading.Thread(target=self._ask, daemon=True).start()

    def look(self) -> None:
        """Start it again if it ended, end it if it hangs."""
        now = time.monotonic()
        if self._child is not None and self._child.poll() is None:
            if now - max(self._answered, self._started) > HUNG_SECONDS:
                self._child.signal(signal.SIGKILL)
            return
        if self._child is not None:
            self._child, self._healthy = None, False
            self._next_start = now + self._pauses.after(now - self._started)
        if now >= self._next_start:
            try:
                self._spawn()
            except (DeployerError, OSError):  # no process, no memory, no disk: perhaps later
                self._next_start = now + self._pauses.after(0.0)

    def _spawn(self) -> None:
        descriptor = self._listening.fileno()
        self._started = time.monotonic()
        self.starts += 1
        self._child = spawn(
            (sys.executable, "-m", "deployer.gateway", str(self._folder), "--fd", str(descriptor)),
            env=clean_environment(),
            log_path=self._log,
            cwd=self._folder,
            descriptors=(descriptor,),
        )

    def _ask(self) -> None:
        """Ask for its health again and again; any answer at all is a sign of life."""
        # Its certificate names where clients find it, not the loopback. A connection of its own
        # for each question: one that is kept would tell nothing of new ones.
        with httpx.Client(
            timeout=ANSWER_SECONDS, verify=False, trust_env=False, headers={"Connection": "close"}
        ) as client:
            while not self._ended.wait(self._pause()):
                try:
                    answer = client.get(f"{self._url}/health")
                except httpx.HTTPError:
                    continue
                self._answered = time.monotonic()
                self._healthy = answer.status_code == 200
                self.was_healthy |= self._healthy
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self.generation = int(answer.json()["generation"])

    def _pause(self) -> float:
        waited_for = not self._healthy or self.generation < self.expected
        return HURRY_SECONDS if waited_for else ASK_SECONDS

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self.runs else None

    @property
    def runs(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def healthy(self) -> bool:
        fresh = time.monotonic() - self._answered < STALE_SECONDS
        return self.runs and self._healthy and fresh

    @property
    def last_words(self) -> str:
        """The end of what it wrote."""
        return tail(self._log, 5)

    def stop(self) -> None:
        """Tell it to drain and end; told again, it ends at once."""
        self._ended.set()
        self._listening.close()  # else connections would be accepted by nobody
        if self._child is not None:
            self._child.signal(signal.SIGTERM)

    def kill(self) -> None:
        self._ended.set()
        self._listening.close()
        if self._child is not None:
            self._child.signal(signal.SIGKILL)
            self._child.stop(grace=0.0)
