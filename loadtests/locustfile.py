"""Locust users that stream an OpenAI chat API and keep every request's raw times.

Run by `deployer loadtest`, or by hand (settings.py). Locust's own percentiles are rounded; the
figures are made from the files that every worker writes (recorder.py).

With a master and workers, every worker ends by its own clock, lets its running requests finish,
and says so; the master ends the test once all have. Were the master to end it, Locust would give
the streams of forked workers three seconds only.
"""

from __future__ import annotations

from typing import Any

import gevent
from locust import events
from locust.env import Environment
from locust.runners import MasterRunner
from recorder import ENDED
from users import RECORDER, SETTINGS, USERS

ended: set[str] = set()


class ChatUser(USERS[SETTINGS.loop]):  # type: ignore[misc]
    """The one user class that Locust, and its web page, see."""


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
    RECORDER.end()


@events.test_stop.add_listener
def _stop(environment: Environment, **_: Any) -> None:
    if not isinstance(environment.runner, MasterRunner):
        RECORDER.stop()


@events.quitting.add_listener
def _quitting(environment: Environment, **_: Any) -> None:
    # Failed requests are a result; an exception in a user is a bug of this file.
    if environment.runner is not None and environment.runner.exceptions:
        environment.process_exit_code = 3
