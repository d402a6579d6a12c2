"""Who may go to a server now, who waits, and who is sent away.

An engine gets no more requests than it decodes at once. All others wait here, where the death of
an engine does not lose them, where they can still go to another one, and where they are counted.
Waiting is first come, first served, as far as a free slot is one that a request may take.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from deployer.gateway.refusals import busy, nobody_healthy
from deployer.gateway.routing import Upstream

UNKNOWN_SECONDS = 1.0
"""What a request is taken to last before any has been measured."""
LONGEST_RETRY = 600.0
_WEIGHT = 0.1
"""Share of the newest request in the mean of their times."""


@dataclass(frozen=True)
class Candidates:
    """Servers that may take a request, best first.

    `hope`: where there are none, whether one may come back, so that it is worth to wait.
    """

    servers: tuple[Upstream, ...]
    hope: bool = True


class Slot:
    """A place at a server, held until `release`. `queued` is how long it was waited for, s."""

    def __init__(self, owner: Admission, route: str, upstream: Upstream, queued: float) -> None:
        self.upstream = upstream
        self.queued = queued
        self._owner: Admission | None = owner
        self._route = route

    def release(self, seconds: float | None = None) -> None:
        """Give it back, once; `seconds` is what the request took, None where it says nothing."""
        owner, self._owner = self._owner, None
        if owner is not None:
            owner._leave(self._route, self.upstream.instance, seconds)


@dataclass(eq=False)
class _Waiting:
    route: str
    find: Callable[[], Candidates]
    found: Candidates
    since: float
    future: asyncio.Future[Slot]


class Admission:
    """The slots of all servers. `clock` gives seconds of a monotonic clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._waiting: dict[_Waiting, None] = {}
        self._queues: Counter[str] = Counter()
        self._means: dict[str, float] = {}

    def running(self, instance: str) -> int:
        """Requests at an instance of a server."""
        return self._running[instance]

    def waiting(self, route: str) -> int:
        """Requests of a route that wait."""
        return self._queues[route]

    @property
    def idle(self) -> bool:
        return not self._waiting and not any(self._running.values())

    def take(self, route: str, servers: tuple[Upstream, ...], since: float) -> Slot | None:
        """A slot at the first of the servers that has one now."""
        for upstream in servers:
            if self._running[upstream.instance] < upstream.slots:
                self._running[upstream.instance] += 1
                return Slot(self, route, upstream, self._clock() - since)
        return None

    async def enter(
        self, route: str, find: Callable[[], Candidates], most_waiting: int, max_wait: float
    ) -> Slot:
        """Wait for a slot, at most `max_wait` seconds.

        `find` is asked again whenever it may have another answer. Raises Refusal: 429 where
        `most_waiting` requests of the route wait already or the time is over, 503 where no server
        can take it.
        """
        now = self._clock()
        found = find()
        slot = self.take(route, found.servers, now)
        if slot is not None:
            return slot
        if not found.servers and not found.hope:
            raise nobody_healthy()
        if self._queues[route] >= most_waiting:
            raise busy(self.estimate(route, found))
        waiting = _Waiting(route, find, found, now, asyncio.get_running_loop().create_future())
        self._waiting[waiting] = None
        self._queues[route] += 1
        try:
            return await self._wait(waiting, max_wait)
        finally:
            self._waiting.pop(waiting, None)
            self._queues[route] -= 1

    async def _wait(self, waiting: _Waiting, max_wait: float) -> Slot:
        try:
            async with asyncio.timeout(max_wait):
                return await waiting.future
        except BaseException as error:
            future = waiting.future
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()  # it came in the moment that we were ended
            if not isinstance(error, TimeoutError):
                raise
        if waiting.found.servers:
            raise busy(self.estimate(waiting.route, waiting.found))
        raise nobody_healthy()

    def poke(self) -> None:
        """Look at all who wait anew: servers came, went, or are judged another way."""
        for waiting in list(self._waiting):
            waiting.found = waiting.find()
            if not waiting.found.servers and not waiting.found.hope:
                self._wake(waiting, None)
            else:
                self._offer(waiting)

    def estimate(self, route: str, found: Candidates) -> float:
        """Seconds until a slot for one more request of the route may be free."""
        slots = sum(upstream.slots for upstream in found.servers) or 1
        mean = self._means.get(route, UNKNOWN_SECONDS)
        return min(LONGEST_RETRY, (self._queues[route] + 1) * mean / slots)

    def _leave(self, route: str, instance: str, seconds: float | None) -> None:
        self._running[instance] -= 1
        if self._running[instance] <= 0:
            del self._running[instance]
        if seconds is not None:
            mean = self._means.get(route, seconds)
            self._means[route] = mean + _WEIGHT * (seconds - mean)
        for waiting in self._waiting:
            if any(upstream.instance == instance for upstream in waiting.found.servers):
                waiting.found = waiting.find()
                if self._offer(waiting):
                    return

    def _offer(self, waiting: _Waiting) -> bool:
        slot = self.take(waiting.route, waiting.found.servers, waiting.since)
        return slot is not None and self._wake(waiting, slot)

    def _wake(self, waiting: _Waiting, slot: Slot | None) -> bool:
        """Tell one who waits: here is your slot, or none will come."""
        if waiting.future.done():
            if slot is not None:
                self._running[slot.upstream.instance] -= 1
            return False
        if slot is None:
            waiting.future.set_exception(nobody_healthy())
        else:
            waiting.future.set_result(slot)
        return True
