"""One worker's part of a run: its clock, its files, its probe, its end.

Two files go into the folder that the settings name: samples-PID.jsonl, one request a line, and
worker-PID.json at the end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import WorkerRunner
from probe import Probe
from settings import Settings

from deployer.metrics import Sample

PROGRESS_EVERY = 0.5
SLICE = 0.1
"""Longest nap, in seconds, of somebody who wants to know when the load ends."""
ENDED = "deployer_ended"
"""What a worker tells its master when its last request has ended."""


class Recorder:
    """`started` and `stopping` are times of the monotonic clock; `stopping` is 0 until the end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = Path(settings.folder) if settings.folder else None
        self.probe = Probe()
        self.started = self.stopping = 0.0
        self.finished = self.failed = self.tokens = 0
        self.greenlets: list[Any] = []
        self.file: Any = None

    def start(self, environment: Environment) -> None:
        if self.folder:
            path = self.folder / f"samples-{os.getpid()}.jsonl"
            self.file = path.open("w", encoding="utf-8")
        self.started = time.monotonic()
        self.stopping = 0.0
        self.greenlets = [gevent.spawn(self.probe.run), gevent.spawn(self._watch)]
        if self.settings.duration_s:
            self.greenlets.append(gevent.spawn(self._end, environment))

    def _end(self, environment: Environment) -> None:
        """End the test on time. With Locust's own `-t 5s` runs ended 3.3 s after their start; here
        `-t` is only a backstop."""
        end = self.started + self.settings.warmup_s + self.settings.duration_s
        while (left := end - time.monotonic()) > 0:
            gevent.sleep(min(left, 1.0))
        runner = environment.runner
        self.end()
        if not isinstance(runner, WorkerRunner):
            gevent.spawn(runner.quit)
            return
        runner.stop_users(runner.user_classes_count)  # waits for them, at most --stop-timeout
        runner.send_message(ENDED)

    def end(self) -> None:
        """The load ends now, if it has not: what Locust does from here on makes nothing late."""
        self.stopping = self.stopping or time.monotonic()
        self.probe.active = False

    def _watch(self) -> None:
        while True:
            gevent.sleep(PROGRESS_EVERY)
            if not self.settings.requests:
                self.probe.active = self.is_measured(time.monotonic()) and not self.stopping
            if self.folder:
                self.tell()

    def is_measured(self, moment: float) -> bool:
        """Whether a request of this moment comes after the warm-up, counted in seconds."""
        return moment - self.started >= self.settings.warmup_s

    def rest(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the load."""
        end = time.monotonic() + seconds
        while not self.stopping and (left := end - time.monotonic()) > 0:
            gevent.sleep(min(left, SLICE))

    def tell(self) -> None:
        """One line of progress for `deployer loadtest`, which shows it."""
        state = {
            "pid": os.getpid(),
            "seconds": round(time.monotonic() - self.started, 2),
            "done": self.finished,
            "failed": self.failed,
            "tokens": self.tokens,
        }
        print("progress " + json.dumps(state), file=sys.stdout, flush=True)

    def keep(self, sample: Sample) -> None:
        self.finished += sample.ok
        self.failed += not sample.ok
        self.tokens += sample.output_tokens or len(sample.chunks)
        if self.file:
            self.file.write(json.dumps(sample.as_json()) + "\n")
            self.file.flush()

    def stop(self) -> None:
        gevent.killall(self.greenlets)
        if self.file:
            self.file.close()
            self.file = None
        if self.folder:
            record = {
                "started": self.started,
                "stopping": self.stopping or time.monotonic(),
                "lag_ms_p99": self.probe.lag_ms(99),
                "cpu_percent_max": round(self.probe.cpu_percent_max, 1),
            }
            path = self.folder / f"worker-{os.getpid()}.json"
            path.write_text(json.dumps(record), encoding="utf-8")
