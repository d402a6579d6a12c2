"""Answers to clients: whole ones, errors, and streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from aiohttp import HttpVersion11, web

from deployer.gateway.refusals import Refusal
from deployer.gateway.sse import event_of

STALLED_SECONDS = 60.0
"""How long a client may take nothing of what it is sent before it is cut off."""
REQUEST_ID, SERVED_BY = "X-Request-Id", "X-Deployer-Server"


class ClientLeft(Exception):
    """The client closed its connection while it was answered."""


class Replies:
    """Makes answers. With `closing`, each tells its client to close the connection."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open: set[StreamReply] = set()
        self.closing = False

    @property
    def open_streams(self) -> int:
        return len(self._open)

    def json(
        self, id_: str, body: bytes | Mapping[str, Any], *, status: int = 200, server: str = ""
    ) -> web.Response:
        """A whole answer with a JSON body."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.whole(id_, raw, "application/json", status=status, server=server)

    def whole(
        self, id_: str, body: bytes, content_type: str, *, status: int = 200, server: str = ""
    ) -> web.Response:
        """A whole answer; `content_type` is the header as it stands."""
        headers = self._headers(id_, server, content_type)
        reply = web.Response(status=status, body=body, headers=headers)
        if self.closing:
            reply.force_close()
        return reply

    def error(self, id_: str, refusal: Refusal) -> web.Response:
        """The answer that a refusal is."""
        reply = self.json(id_, refusal.body, status=refusal.status)
        reply.headers.update(refusal.headers)
        return reply

    def stream(self, request: web.BaseRequest, id_: str, server: str) -> StreamReply:
        """A stream of events that begins with what is first written to it."""
        headers = self._headers(id_, server, "text/event-stream")
        headers |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(status=200, headers=headers)
        return StreamReply(request, response, self, self._open, self._clock)

    def cut_stalled(self) -> None:
        """End the connections of clients that take nothing; their requests are cancelled by it."""
        now = self._clock()
        for reply in self._open:
            if reply.writing is not None and now - reply.writing > STALLED_SECONDS:
                reply.abort()

    def _headers(self, id_: str, server: str, content_type: str) -> dict[str, str]:
        served = {SERVED_BY: server} if server else {}
        own = {"Content-Type": content_type, "Server": "deployer", REQUEST_ID: id_}
        return {**own, **served, "X-Content-Type-Options": "nosniff"}


class StreamReply:
    """One stream to a client; a context, within which it counts as open.

    `begun`: a byte of it was sent. `writing` is since when a write waits for the client, None
    where none does. Writing raises ClientLeft.
    """

    def __init__(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        owner: Replies,
        opened: set[StreamReply],
        clock: Callable[[], float],
    ) -> None:
        self.response = response
        self.begun = False
        self._ended = False
        self.writing: float | None = None
        self._request = request
        self._chunked = request.version >= HttpVersion11
        self._owner = owner
        self._opened = opened
        self._clock = clock

    def __enter__(self) -> StreamReply:
        self._opened.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.discard(self)

    async def write(self, events: bytes) -> None:
        """Send whole events."""
        try:
            if not self.begun:
                await self._begin()
            transport = self._request.transport
            if transport is None or transport.is_closing():
                raise ClientLeft
            # Framed here: the response object's own write takes four times as long.
            transport.write(b"%x\r\n%b\r\n" % (len(events), events) if self._chunked else events)
            if self._request.protocol.writing_paused:
                self.writing = self._clock()
                await self._request.writer.drain()
                self.writing = None
        except ConnectionError as error:
            raise ClientLeft from error

    async def end(self, refusal: Refusal | None = None) -> None:
        """End the body, once, with an error as its last event where something went wrong."""
        ended, self._ended = self._ended, True
        if ended:
            return
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            task.uncancel()  # what is said now is short, and nobody else can say it
        if refusal is not None:
            await self.write(event_of(refusal.object))
        try:
            await self.response.write_eof()
        except ConnectionError as error:
            raise ClientLeft from error

    def abort(self) -> None:
        """End the connection without another word."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _begin(self) -> None:
        self.begun = True
        if self._owner.closing:
            self.response.force_close()
        if self._chunked:
            self.response.enable_chunked_encoding()
        await self.response.prepare(self._request)
