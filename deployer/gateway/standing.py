"""What is thought of one server for one route, and when it is probed. Pure, times are given."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from deployer.gateway.outcome import Outcome
from deployer.gateway.routing import Upstream
from deployer.gateway.window import Window
from deployer.recipe.deployment import Route

Reason = Literal["not_ready", "connection", "objectives", "quality"]
Change = Literal["same", "restarted", "replaced"]

FAILURES = 3
"""Requests in a row without a whole answer, after which a server is suspected."""
SUSPICION = 5.0
"""Seconds between two probes of a server that is suspected and answers them."""
PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between the probes of an unfit server: at first, and at most."""
RELAPSES = 3
"""How often the time of recovery is doubled for a server that falls ill again and again."""
WELL = 10
"""A server that was fit for this many times its time of recovery has no relapse after it."""


@dataclass(frozen=True)
class Probed:
    """What a probe found. `ttft` is the time until one token, seconds; None where none came.

    `asked` and `right` count the questions of a round and the right answers.
    """

    ttft: float | None = None
    asked: int = 0
    right: int = 0

    @property
    def share(self) -> float:
        """Share of the questions that were answered rightly, 1.0 where none was asked."""
        return self.right / self.asked if self.asked else 1.0


@dataclass
class Server:
    """What holds for all routes: its row of the table, and requests in a row that failed.

    `broken`: it is taken for dead until a probe is answered.
    """

    upstream: Upstream | None = None
    failures: int = 0
    broken: bool = False

    @property
    def suspected(self) -> bool:
        return self.failures >= FAILURES

    @property
    def ready(self) -> bool:
        return self.upstream is not None and self.upstream.state == "ready"

    @property
    def instance(self) -> str:
        return self.upstream.instance if self.upstream else ""

    def renew(self, upstream: Upstream | None) -> Change:
        """Take a new row. What failed before a start says nothing about what comes after it."""
        before, was_ready = self.upstream, self.ready
        self.upstream = upstream
        if before is None or upstream is None:
            change: Change = "same" if before is upstream else "replaced"
        elif before.instance != upstream.instance:
            change = "replaced"
        else:
            started = before.restarts != upstream.restarts or (self.ready and not was_ready)
            change = "restarted" if started else "same"
        if change != "same":
            self.answered()
        return change

    def answered(self) -> None:
        self.failures, self.broken = 0, False

    def failed(self, outcome: Outcome) -> None:
        """Count a request without a whole answer.

        Hung and broken-off answers tell of a sick server. But an engine that answers with an
        error of its own may do so for what one client sends, again and again: that must not
        take the server from all others, so only a probe can decide.
        """
        self.failures += 1
        self.broken |= self.suspected and outcome.kind != "upstream_error"


@dataclass
class Judge:
    """Judges one server for one route.

    `judged`: objectives count. They do for the servers of `to`, not for a fallback or a shadow.
    `missed` and `wrong` say in words why it is unfit, None where it is not; `correct` is the
    share of right answers in the last round of questions.
    """

    route: Route
    server: str
    state: Server
    judged: bool
    probe_at: float
    window: Window = field(init=False)
    missed: str | None = None
    wrong: str | None = None
    correct: float | None = None
    passing_since: float | None = None
    probing: bool = False
    probed_at: float = -math.inf
    pause: float = PAUSE
    relapses: int = 0
    fit_since: float | None = None
    known_as_fit: bool = False

    def __post_init__(self) -> None:
        self.window = Window(self.route.objectives)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why it is unfit; none where it is fit."""
        held: dict[Reason, bool] = {
            "not_ready": not self.state.ready,
            "connection": self.state.broken,
            "objectives": self.missed is not None,
            "quality": self.wrong is not None,
        }
        return tuple(reason for reason, holds in held.items() if holds)

    @property
    def fit(self) -> bool:
        return self.usable and self.missed is None and self.wrong is None

    @property
    def usable(self) -> bool:
        """Whether it answers at all, be it slowly or wrongly."""
        return self.state.ready and not self.state.broken

    def describe(self) -> str:
        """The reasons in words."""
        words = {
            "not_ready": f"it is {self.state.upstream.state if self.state.upstream else 'gone'}",
            "connection": f"{self.state.failures} requests in a row without a whole answer",
            "objectives": str(self.missed),
            "quality": str(self.wrong),
        }
        return "; ".join(words[reason] for reason in self.reasons)

    def forget(self, now: float) -> None:
        """Begin anew, with another instance or another demand."""
        self.window = Window(self.route.objectives)
        self.missed = self.wrong = self.correct = self.passing_since = self.fit_since = None
        self.relapses, self.pause, self.probe_at, self.probing = 0, PAUSE, now, False

    def restart(self, now: float) -> None:
        """The same thing was started again: its times are others, its answers are not."""
        self.window.clear()
        self.probe_at = min(self.probe_at, now)

    def observe(self, outcome: Outcome, now: float) -> None:
        """Take a client's request."""
        if self.judged and self.missed is None:
            self.window.add(outcome, now)

    def judge(self, now: float) -> None:
        """See whether the objectives hold."""
        if self.judged and self.missed is None:
            self.missed = self.window.missed(now)
            if self.missed is not None:
                self._fall(now)

    def hasten(self, now: float) -> None:
        """It has just become unfit: probe it soon."""
        self.pause, self.probe_at = PAUSE, min(self.probe_at, now + PAUSE)

    def suspect(self, now: float) -> None:
        """Requests fail at it: ask it itself, but not too often, for it may be the requests."""
        self.probe_at = min(self.probe_at, max(now, self.probed_at + SUSPICION))

    def is_due(self, now: float) -> bool:
        """Whether it should be probed now."""
        wanted = not self.fit or self.state.suspected or self.route.quality is not None
        return wanted and self.state.ready and not self.probing and now >= self.probe_at

    def probed(self, found: Probed | None, now: float) -> None:
        """Take what a probe found; None where there was no free slot for it."""
        self.probing, self.probed_at = False, now
        if found is None:
            self.probe_at = now + PAUSE
            return
        if found.ttft is not None:
            self.state.answered()
        else:
            self.state.failures += 1
            self.state.broken |= self.state.suspected
        if found.asked:
            self._mark(found, now)
        if self._passes(found):
            self.pause = PAUSE
            self._recover(now)
        else:
            self.passing_since = None
        self.probe_at = now + self._next_pause()

    def _mark(self, found: Probed, now: float) -> None:
        quality = self.route.quality
        self.correct = found.share
        if quality is not None and found.share < quality.at_least:
            was_right = self.wrong is None
            self.wrong = f"{found.right} of {found.asked} questions answered rightly"
            if was_right:
                self._fall(now)

    def _fall(self, now: float) -> None:
        """It became unfit by its own doing; the time to recover doubles where that is usual."""
        well = self.route.recover_after * WELL
        again = self.fit_since is not None and now - self.fit_since < well
        self.relapses = min(RELAPSES, self.relapses + 1) if again else 0
        self.passing_since = self.fit_since = None
        self.window.clear()

    def _passes(self, found: Probed) -> bool:
        quality, limit = self.route.quality, self.route.objectives.ttft_p95_ms
        if found.ttft is None or (quality is not None and found.share < quality.at_least):
            return False
        return limit is None or not self.judged or found.ttft * 1000 <= limit

    def _recover(self, now: float) -> None:
        if self.missed is None and self.wrong is None:
            return
        if self.passing_since is None:
            self.passing_since = now
        if now - self.passing_since >= self.route.recover_after * 2**self.relapses:
            self.missed = self.wrong = self.passing_since = None
            self.fit_since = now

    def _next_pause(self) -> float:
        if self.fit and not self.state.failures:
            return self.route.quality.every if self.route.quality else math.inf
        if self.passing_since is not None:  # often enough to see how long it keeps well
            return max(PAUSE, min(self.route.recover_after / 4, 10.0))
        pause, self.pause = self.pause, min(self.pause * 2, LONGEST_PAUSE)
        return pause
