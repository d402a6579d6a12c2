"""The users of a load test: one who waits for each answer, and one who sends by the clock."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import gevent
import plan
from answer import Answer
from gevent.pool import Group
from locust import User, constant, task
from locust.exception import StopUser
from recorder import Recorder
from requester import Messages, Requester
from settings import api_key, read

from deployer.metrics import MEASURED, WARMUP

SETTINGS = read()
RECORDER = Recorder(SETTINGS)
REQUESTER = Requester(SETTINGS, RECORDER, api_key())
PLAN = plan.read(SETTINGS)
NUMBERS, SENT = count(), count()
GOLDEN = 0.618_033_988_75
"""Multiples of it fall evenly, and never into step."""


class _User(User):  # type: ignore[misc]
    abstract = True
    host = SETTINGS.endpoint
    wait_time = constant(0)

    def on_start(self) -> None:
        self.worker = getattr(self.environment.runner, "worker_index", 0)
        self.number = next(NUMBERS)
        self.name = f"{self.worker}-{self.number}"
        self.sent = 0
        REQUESTER.connect_to(self.host)


class ClosedUser(_User):
    """Sends the next request as soon as the last answer has ended; holds conversations."""

    abstract = True

    def on_start(self) -> None:
        """Locust starts users by the second, all of one second at once: their streams would stay
        in step, and their chunks come in bursts that the server did not make."""
        super().on_start()
        spread = min(1.0, SETTINGS.ramp_s)
        RECORDER.rest(spread * ((self.number + self.worker / SETTINGS.workers) * GOLDEN % 1.0))

    @task
    def converse(self) -> None:
        """A conversation; in most profiles it has one question."""
        history: Messages = []
        for turn in range(SETTINGS.turns):
            if turn:
                RECORDER.rest(SETTINGS.think_s)
            if RECORDER.stopping:
                raise StopUser()
            answer = self._ask(history, turn)
            self._after(answer)
            if answer.error:
                return
            history += [
                {"role": "user", "content": answer.prompt},
                {"role": "assistant", "content": "".join(answer.said)},
            ]

    def _ask(self, history: Messages, turn: int) -> Answer:
        index = self.worker + next(SENT) * SETTINGS.workers
        row = PLAN[index % len(PLAN)]
        identity = f"{self.name}-{self.sent}"
        prompt = REQUESTER.prompt(row, index, identity)
        now = time.monotonic()
        answer = Answer(identity, self._phase(now), prompt, due=now, sent=now)
        answer.turn = turn
        self.sent += 1
        REQUESTER.ask(self.environment, row, answer, history, SETTINGS.seed + self.sent - 1)
        return answer

    def _phase(self, now: float) -> str:
        if SETTINGS.requests:
            RECORDER.probe.active = self.sent > 0
            return MEASURED if self.sent else WARMUP
        return MEASURED if RECORDER.is_measured(now) else WARMUP

    def _after(self, answer: Answer) -> None:
        if SETTINGS.requests and self.sent > SETTINGS.requests:
            gevent.spawn(self.environment.runner.quit)
            raise StopUser()
        if answer.error:
            RECORDER.rest(SETTINGS.pause_s)


class OpenUser(_User):
    """Sends the requests of the plan when they are due, each in a greenlet of its own.

    A due time is absolute: neither a slow answer nor a late wake-up moves the ones that follow.
    """

    abstract = True

    @task
    def arrive(self) -> None:
        """All requests that are this worker's, then wait for their answers."""
        running = Group()
        try:
            for index, row in plan.share(PLAN, self.worker, SETTINGS.workers):
                due = RECORDER.started + row.due
                prompt = REQUESTER.prompt(row, index, f"{self.name}-{index}")
                while (left := due - time.monotonic()) > 0 and not RECORDER.stopping:
                    gevent.sleep(min(left, 1.0))
                if RECORDER.stopping:
                    break
                running.start(gevent.Greenlet(self._send, row, index, prompt, due))
            running.join()
            RECORDER.rest(SETTINGS.warmup_s + SETTINGS.duration_s)
        finally:
            running.kill()  # where Locust's patience has ended; else there is none left
        raise StopUser()

    def _send(self, row: plan.Row, index: int, prompt: str, due: float) -> None:
        phase = MEASURED if RECORDER.is_measured(due) else WARMUP
        answer = Answer(f"{self.name}-{index}", phase, prompt, due=due, sent=due)
        REQUESTER.ask(self.environment, row, answer, [], SETTINGS.seed + index)


USERS: dict[str, Any] = {"closed": ClosedUser, "open": OpenUser}
"""Loop of the settings -> who puts the load."""
