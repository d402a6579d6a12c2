"""Locust users that stream an OpenAI chat API and keep every request's raw times.

Run by `deployer loadtest`, or by hand (settings.py). One process writes two files into the
folder its settings name: samples-PID.jsonl, one request a line, and worker-PID.json at the end.
Locust's own percentiles are rounded; the figures are made from these files.

With a master and workers, every worker ends by its own clock, lets its running requests finish,
and says so; the master ends the test once all have. Were the master to end it, Locust would give
the streams of forked workers three seconds only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import gevent
from answer import Answer
from client import CHAT, ChatClient
from locust import User, constant, events, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner
from probe import Probe
from prompts import make, nonce
from settings import api_key, read

from deployer.metrics import MEASURED, WARMUP, Sample

SETTINGS = read()
KEY = api_key()
PROGRESS_EVERY = 0.5
ENDED = "deployer_ended"
"""What a worker tells its master when its last request has ended."""


class Recorder:
    """This worker's part of the run: its clock, its samples, its probe."""

    def __init__(self) -> None:
        self.folder = Path(SETTINGS.folder) if SETTINGS.folder else None
        self.probe = Probe()
        self.started = self.stopping = 0.0
        self.finished = self.failed = self.tokens = 0
        self.users = count()
        self.greenlets: list[Any] = []
        self.model = SETTINGS.model
        self.file: Any = None

    def start(self, environment: Environment) -> None:
        if self.folder:
            path = self.folder / f"samples-{os.getpid()}.jsonl"
            self.file = path.open("w", encoding="utf-8")
        self.started = time.monotonic()
        self.stopping = 0.0
        self.greenlets = [gevent.spawn(self.probe.run), gevent.spawn(self._watch)]
        if SETTINGS.duration_s:
            self.greenlets.append(gevent.spawn(self._end, environment))

    def _end(self, environment: Environment) -> None:
        """End the test on time. With Locust's own `-t 5s` runs ended 3.3 s after their start; here
        `-t` is only a backstop."""
        end = self.started + SETTINGS.warmup_s + SETTINGS.duration_s
        while (left := end - time.monotonic()) > 0:
            gevent.sleep(min(left, 1.0))
        runner = environment.runner
        if not isinstance(runner, WorkerRunner):
            gevent.spawn(runner.quit)
            return
        self.stopping = time.monotonic()
        runner.stop_users(runner.user_classes_count)  # waits for them, at most --stop-timeout
        runner.send_message(ENDED)

    def _watch(self) -> None:
        while True:
            gevent.sleep(PROGRESS_EVERY)
            if not SETTINGS.requests:
                self.probe.active = self.warm() and not self.stopping
            if self.folder:
                self.tell()

    def warm(self) -> bool:
        """Whether the warm-up, counted in seconds, is over."""
        return time.monotonic() - self.started >= SETTINGS.warmup_s

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


RECORDER = Recorder()
ended: set[str] = set()


class ChatUser(User):
    """Sends the next request as soon as the last answer has ended (a closed loop)."""

    host = SETTINGS.endpoint
    wait_time = constant(0)

    def on_start(self) -> None:
        worker = getattr(self.environment.runner, "worker_index", 0)
        self.name = f"{worker}-{next(RECORDER.users)}"
        self.sent = 0
        self.client = ChatClient(self.host or SETTINGS.endpoint, SETTINGS, KEY)
        if not RECORDER.model:
            RECORDER.model = self.client.model()

    @task
    def chat(self) -> None:
        """One request, recorded once, when it has ended."""
        if RECORDER.stopping:
            raise StopUser()
        identity = f"{self.name}-{self.sent}"
        phase = self._phase()
        prompt = make(
            SETTINGS.prompt_words,
            f"{SETTINGS.seed}/{identity}",
            nonce(SETTINGS.run_id, SETTINGS.seed, identity),
        )
        request = self.client.request(RECORDER.model, prompt, SETTINGS.seed + self.sent)
        now = time.monotonic()
        answer = Answer(identity, phase, prompt, due=now, sent=now)
        self.sent += 1
        try:
            self.client.exchange(request, answer)
        except gevent.GreenletExit:
            answer.fail("cutoff", "the test ended first")
            raise
        finally:
            self._record(answer)
        self._after(answer)

    def _phase(self) -> str:
        if SETTINGS.requests:
            RECORDER.probe.active = self.sent > 0
            return MEASURED if self.sent else WARMUP
        return MEASURED if RECORDER.warm() else WARMUP

    def _record(self, answer: Answer) -> None:
        least = SETTINGS.output_tokens if SETTINGS.ignore_eos else 0
        sample = answer.sample(time.monotonic(), least)
        RECORDER.keep(sample)
        failure = None if sample.ok else RuntimeError(f"{sample.error}: {sample.detail}")
        self.environment.events.request.fire(
            request_type="POST",
            name=CHAT,
            response_time=((sample.last or sample.closed) - sample.sent) * 1000,
            response_length=len("".join(answer.parts)),
            exception=failure,
            context={},
            response=None,
        )

    def _after(self, answer: Answer) -> None:
        if SETTINGS.requests and self.sent > SETTINGS.requests:
            gevent.spawn(self.environment.runner.quit)
            raise StopUser()
        if answer.error:
            gevent.sleep(SETTINGS.pause_s)


@events.init.add_listener
def _init(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, MasterRunner):
        environment.runner.register_message(ENDED, _ended)


def _ended(environment: Environment, msg: Any) -> None:
    """A worker has ended; with the last one the test ends."""
    ended.add(msg.node_id)
    if ended.issuperset(environment.runner.clients):
        gevent.spawn(environment.runner.quit)


@events.test_start.add_listener
def _start(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, MasterRunner):
        ended.clear()
    else:
        RECORDER.start(environment)


@events.test_stopping.add_listener
def _stopping(environment: Environment, **_: Any) -> None:
    RECORDER.stopping = RECORDER.stopping or time.monotonic()


@events.test_stop.add_listener
def _stop(environment: Environment, **_: Any) -> None:
    if not isinstance(environment.runner, MasterRunner):
        RECORDER.stop()


@events.quitting.add_listener
def _quitting(environment: Environment, **_: Any) -> None:
    # Failed requests are a result; an exception in a user is a bug of this file.
    if environment.runner is not None and environment.runner.exceptions:
        environment.process_exit_code = 3
