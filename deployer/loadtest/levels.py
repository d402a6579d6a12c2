"""One level of load: how many users, or how many requests a second, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from deployer.recipe import LoadTest
from deployer.recipe.loadtest import ONE_USER

SMOKE_REQUESTS = 5
SMOKE_LIMIT_S = 300
BACKSTOP_S = 30
RAMP = 0.8
"""Share of the warm-up in which the users of a closed loop start."""


@dataclass(frozen=True)
class Level:
    """`requests` > 0 ends the level after so many, else `warmup` + `duration` seconds do.

    `rate` is requests per second of an open loop; 0 where the trace says when requests are due.
    """

    name: str
    loop: Literal["closed", "open"]
    users: int = 1
    rate: float = 0.0
    warmup: int = 0
    duration: float = 0.0
    requests: int = 0

    @property
    def target(self) -> float:
        return self.rate if self.loop == "open" else self.users

    @property
    def unit(self) -> str:
        if self.loop == "open":
            return "request/s" if self.rate == 1 else "requests/s"
        return "user" if self.users == 1 else "users"

    @property
    def seconds(self) -> float:
        """How long the load lasts, in seconds; 0 where a number of requests ends it."""
        return 0.0 if self.requests else self.warmup + self.duration

    @property
    def ramp(self) -> float:
        """Seconds in which the users start, one after the other, so that they are not in step.

        The workers of an open loop start all at once, for their clocks start with them.
        """
        return RAMP * self.warmup if self.loop == "closed" else 0.0

    @property
    def limit(self) -> int:
        """Seconds after which Locust ends the load by itself; the locustfile ends it before."""
        return SMOKE_LIMIT_S if self.requests else int(self.seconds + 1) + BACKSTOP_S


def users_of(workload: LoadTest) -> int:
    """How many users wait for their answers at the same time; 1 of an open loop."""
    return 1 if workload.is_open or workload.profile in ONE_USER else workload.users


def level_of(workload: LoadTest, rate: float | None = None) -> Level:
    """The level of a workload; of a sweep the one with `rate` requests per second."""
    if workload.is_open:
        per_second = 0.0 if workload.profile == "replay" else rate or workload.rate
        level = Level(
            name=workload.profile, loop="open", rate=per_second, warmup=workload.warmup,
            duration=workload.duration,
        )  # fmt: skip
        return replace(level, name=f"{per_second:.4g} {level.unit}") if per_second else level
    users = users_of(workload)
    if workload.profile == "smoke":
        return Level(name=users_text(1), loop="closed", requests=SMOKE_REQUESTS)
    return Level(
        name=users_text(users), loop="closed", users=users, warmup=workload.warmup,
        duration=workload.duration,
    )  # fmt: skip


def users_text(users: int) -> str:
    return "1 user" if users == 1 else f"{users} users"
