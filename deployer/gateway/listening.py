"""The HTTP server: aiohttp's, with its errors spelled as all others of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import HttpVersion10, HttpVersion11, StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from deployer.gateway.refusals import invalid
from deployer.gateway.replies import Replies

BACKLOG = 1024
KEEP_ALIVE = 75.0
"""Seconds a connection may idle, and that a client gets to send the head of a request."""
TLS_SECONDS = 10.0
VERSIONS = (HttpVersion10, HttpVersion11)
"""The others that aiohttp's parser takes are an HTTP/0.9 that nobody speaks, and a 2.0 in clothes
that are not its own; what stands before us may read such a request otherwise."""
MOST = 16_384
SPARE_FILES = 128
"""Open files that are not connections of requests."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Strange(web.BaseRequest):
    """A request of a version that is not spoken here."""


class Listener(web.Server):
    """Makes a `Connection` for each client."""

    def __init__(self, handler: Handler, replies: Replies, refused: Callable[[str], None]) -> None:
        # The task of a request is cancelled when its client leaves: the engine stops at once.
        super().__init__(
            self._answer,
            request_factory=self._request,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE,
            auto_decompress=False,
            lingering_time=5.0,
        )
        self.handler = handler
        self.replies = replies
        self.refused = refused
        self.most = most_connections()

    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if isinstance(request, Strange):
            return self.refuse("the version of HTTP must be 1.0 or 1.1")
        return await self.handler(request)

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        """As aiohttp makes it, but for one of a strange version, which is answered in HTTP/1.0."""
        made: type[web.BaseRequest] = web.BaseRequest
        if message.version not in VERSIONS:
            made, message = Strange, message._replace(version=HttpVersion10)
        return made(message, payload, protocol, writer, task, self._loop)

    def refuse(self, message: str) -> web.Response:
        """The answer to what is no request, and the end of its connection."""
        self.refused("request")
        refusal = invalid(message)
        refusal.status = 400
        reply = self.replies.error("none", refusal)
        reply.force_close()
        return reply

    async def listen(
        self, listening: socket.socket, tls: ssl.SSLContext | None
    ) -> asyncio.AbstractServer:
        """Accept connections of a socket that is bound."""
        return await asyncio.get_running_loop().create_server(
            self,
            sock=listening,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else TLS_SECONDS,
        )


def most_connections() -> int:
    """How many clients may be connected, with as many connections to engines beside them.

    The limit of open files is raised as far as the system lets us.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if soft == resource.RLIM_INFINITY else (soft - SPARE_FILES) // 2
    return max(1, min(MOST, most))


class Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        manager = self._manager
        if isinstance(manager, Listener) and len(manager.connections) > manager.most:
            manager.refused("busy")
            self.force_close()  # better than to run out of files, and then to accept nobody

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP request; its words repeat nothing that was sent."""
        if request.writer.output_size > 0 or not isinstance(self._manager, Listener):
            raise ConnectionError("an answer was begun already")
        return self._manager.refuse("this is no HTTP request that can be understood")
