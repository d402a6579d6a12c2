"""Take an accepted request to a server and bring its answer back.

A request that fails before the client got a byte goes to the next server, to each at most once.
After the first byte nothing can be taken back: then the client gets an error as the last event
and no end mark, so that half an answer never looks like a whole one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import aiohttp
from aiohttp import web

from deployer.gateway.admission import Admission, Slot
from deployer.gateway.exchange import Attempt, Exchange
from deployer.gateway.finding import Finder
from deployer.gateway.outcome import Outcome
from deployer.gateway.refusals import Refusal, draining, server_failed
from deployer.gateway.replies import ClientLeft, Replies, StreamReply
from deployer.gateway.routing import Table, Upstream
from deployer.gateway.shadows import Shadows
from deployer.gateway.sse import DONE, EventTooLong, Splitter, payload
from deployer.gateway.upstreams import Answer, Failed, answer_of
from deployer.gateway.watch import StreamWatch, usage_of

DEATHS = 2
"""Engines that may end under one request; it may be what ends them."""


class Proxy:
    """Serves exchanges. `observe` takes what became of each attempt, and at which server.

    With `cutting`, a stream whose task is cancelled ends with an error that the client sees.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        table: Callable[[], Table],
        finder: Finder,
        admission: Admission,
        replies: Replies,
        shadows: Shadows,
        clock: Callable[[], float],
        observe: Callable[[Outcome, Exchange, Upstream | None], None],
    ) -> None:
        self._session = session
        self._table = table
        self._finder = finder
        self._admission = admission
        self._replies = replies
        self._shadows = shadows
        self._clock = clock
        self._observe = observe
        self.cutting = False

    async def serve(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        """Answer a request; raises Refusal where no server has."""
        self._shadows.copy(exchange)
        tried: set[str] = set()
        last: Failed | None = None
        deaths = 0
        until = self._clock() + self._table().gateway.max_wait
        while True:
            slot = await self._enter(exchange, tried, until, last)
            began, held = self._clock(), None
            try:
                reply = await self._attempt(request, exchange, slot)
                held = self._clock() - began
                return reply
            except Failed as failed:
                last = failed
                deaths += failed.died
                if not failed.reached:
                    self._finder.mark_down(slot.upstream.instance)
                    continue  # nothing was sent: it may come again when the server is back
                tried.add(slot.upstream.instance)
                if deaths >= DEATHS:
                    raise failed.refusal from failed
            finally:
                slot.release(held)

    async def _enter(
        self, exchange: Exchange, tried: set[str], until: float, last: Failed | None
    ) -> Slot:
        gateway = self._table().gateway
        begun = self._clock()
        # One that was let in before does not have to find room in the queue a second time.
        room = gateway.max_waiting if last is None else 1 << 30
        try:
            return await self._admission.enter(
                exchange.route.model,
                lambda: self._finder.find(exchange, tried),
                room,
                max(0.0, until - begun),
            )
        except Refusal as refusal:
            if last is not None and last.reached:
                raise last.refusal from refusal
            self._refused(exchange, refusal, self._clock() - begun)
            raise

    def _refused(self, exchange: Exchange, refusal: Refusal, waited: float) -> None:
        attempt = Attempt("", self._clock(), waited, False)
        attempt.status, attempt.kind = refusal.status, refusal.kind
        self._observe(attempt.outcome(exchange, self._clock()), exchange, None)

    async def _attempt(
        self, request: web.BaseRequest, exchange: Exchange, slot: Slot
    ) -> web.StreamResponse:
        """Ask one server; raises Failed where another may be asked, Refusal where none may."""
        upstream = slot.upstream
        fallback = upstream.name == exchange.route.fallback
        attempt = Attempt(upstream.name, self._clock(), slot.queued, fallback)
        try:
            async with answer_of(
                self._session,
                upstream,
                exchange.asked.path,
                exchange.asked.for_server(upstream.model),
                exchange.engine_headers(),
                self._table().gateway.request_timeout,
            ) as answer:
                if exchange.asked.stream:
                    return await self._stream(request, exchange, attempt, answer)
                return await self._whole(exchange, attempt, answer)
        except Failed as failed:
            attempt.kind, attempt.status = failed.kind, failed.refusal.status
            raise
        except Refusal as refusal:
            attempt.kind, attempt.status = refusal.kind, refusal.status
            raise
        finally:
            self._observe(attempt.outcome(exchange, self._clock()), exchange, upstream)

    async def _whole(
        self, exchange: Exchange, attempt: Attempt, answer: Answer
    ) -> web.StreamResponse:
        raw = await answer.whole()
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise Failed("upstream_error", server_failed("answered what is not a JSON object"))
        if body.get("error") is not None:
            raise Failed("upstream_error", server_failed("answered with an error"))
        attempt.prompt_tokens, attempt.output_tokens = usage_of(body)
        exchange.charge(attempt.prompt_tokens, attempt.output_tokens or 0)
        attempt.kind, attempt.status = "ok", 200
        return self._replies.json(exchange.id, raw, server=attempt.server)

    async def _stream(
        self,
        request: web.BaseRequest,
        exchange: Exchange,
        attempt: Attempt,
        answer: Answer,
    ) -> web.StreamResponse:
        if answer.content_type != "text/event-stream":
            raise Failed("upstream_error", server_failed("answered without a stream"))
        watch = attempt.watch = StreamWatch(keep_usage=exchange.asked.wants_usage)
        attempt.status = 200
        with self._replies.stream(request, exchange.id, attempt.server) as reply:
            try:
                broken = await self._pump(answer, watch, reply)
                if broken is not None and not reply.begun:
                    raise broken
                attempt.kind = "ok" if broken is None else broken.kind
                await reply.end(None if broken is None else broken.refusal)
            except ClientLeft:
                attempt.kind = "cancelled"
            except asyncio.CancelledError:
                if not (self.cutting and reply.begun):
                    raise
                await reply.end(draining())
            finally:
                if reply.begun:
                    exchange.charge(watch.prompt_tokens, watch.output_tokens, watch.chunks)
            return reply.response

    async def _pump(self, answer: Answer, watch: StreamWatch, reply: StreamReply) -> Failed | None:
        """Pass the events on as they come; gives what went wrong, None where it came to its end."""
        splitter, clock = Splitter(), self._clock
        try:
            while chunk := await answer.read():
                now = clock()
                kept = [event for event in splitter.feed(chunk) if watch.take(event, now)]
                if kept:
                    await reply.write(kept[0] if len(kept) == 1 else b"".join(kept))
                if watch.ended:
                    break
        except EventTooLong:
            return Failed("upstream_error", server_failed("sent an event without an end"))
        except Failed as failed:
            return failed
        if not watch.ended and (payload(splitter.rest) or b"").strip() == DONE:
            await reply.write(b"data: [DONE]\n\n")  # whole, but for the empty line behind it
            watch.done = True
        if watch.fault is None:
            return None
        kind, what = watch.fault
        return Failed(kind, server_failed(what))
