"""Copies of requests for a server that is tried out: measured, thrown away, never in the way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import aiohttp

from deployer.gateway.admission import Admission, Slot
from deployer.gateway.exchange import Attempt, Exchange
from deployer.gateway.outcome import Outcome
from deployer.gateway.refusals import Refusal, server_failed
from deployer.gateway.routing import Table, Upstream
from deployer.gateway.sse import EventTooLong, Splitter
from deployer.gateway.upstreams import Failed, answer_of
from deployer.gateway.watch import StreamWatch

AT_ONCE = 8
"""Copies under way; further ones are dropped."""


class Shadows:
    """Sends copies. `observe` takes what became of one, `dropped` route and server of others."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        table: Callable[[], Table],
        admission: Admission,
        clock: Callable[[], float],
        observe: Callable[[Outcome], None],
        dropped: Callable[[str, str], None],
    ) -> None:
        self._session = session
        self._table = table
        self._admission = admission
        self._clock = clock
        self._observe = observe
        self._dropped = dropped
        self._tasks: set[asyncio.Task[None]] = set()

    def copy(self, exchange: Exchange) -> None:
        """Send a copy where the route wants one of this request; returns at once."""
        shadow = exchange.route.shadow
        if shadow is None or random.random() >= shadow.share:
            return
        slot = self._place(exchange, shadow.server)
        if slot is None:
            self._dropped(exchange.route.model, shadow.server)
            return
        task = asyncio.get_running_loop().create_task(self._send(exchange, slot))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        """End all copies that are under way."""
        for task in list(self._tasks):
            task.cancel()

    def _place(self, exchange: Exchange, server: str) -> Slot | None:
        """A slot for the copy, None where there is no room; it never waits."""
        upstream = self._table().upstream(server)
        if upstream is None or upstream.state != "ready" or len(self._tasks) >= AT_ONCE:
            return None
        if (exchange.asked.max_tokens or 0) > upstream.context:
            return None
        return self._admission.take(exchange.route.model, (upstream,), self._clock())

    async def _send(self, exchange: Exchange, slot: Slot) -> None:
        upstream = slot.upstream
        attempt = Attempt(upstream.name, self._clock(), 0.0, False, shadow=True)
        try:
            await self._read(exchange, upstream, attempt)
            attempt.kind, attempt.status = "ok", 200
        except Failed as failed:
            attempt.kind, attempt.status = failed.kind, failed.refusal.status
        except Refusal as refusal:
            attempt.kind, attempt.status = refusal.kind, refusal.status
        except EventTooLong:
            attempt.kind = "upstream_error"
        finally:
            slot.release()
            self._observe(attempt.outcome(exchange, self._clock()))

    async def _read(self, exchange: Exchange, upstream: Upstream, attempt: Attempt) -> None:
        body = exchange.asked.for_server(upstream.model)
        silence = self._table().gateway.request_timeout
        async with answer_of(
            self._session, upstream, exchange.asked.path, body, exchange.engine_headers(), silence
        ) as answer:
            if not exchange.asked.stream:
                await answer.whole()
                return
            watch = attempt.watch = StreamWatch(keep_usage=False)
            splitter = Splitter()
            while chunk := await answer.read():
                now = self._clock()
                for event in splitter.feed(chunk):
                    watch.take(event, now)
            if watch.fault is not None:
                kind, what = watch.fault
                raise Failed(kind, server_failed(what))
