"""The HTTP server: aiohttp's, with its errors spelled as all others of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

from deployer.gateway.refusals import invalid
from deployer.gateway.replies import Replies

BACKLOG = 1024
KEEP_ALIVE = 75.0
"""Seconds a connection may idle, and that a client gets to send the head of a request."""
TLS_SECONDS = 10.0
MOST = 16_384
SPARE_FILES = 128
"""Open files that are not connections of requests."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Listener(web.Server):
    """Makes a `Connection` for each client."""

    def __init__(self, handler: Handler, replies: Replies, refused: Callable[[str], None]) -> None:
        # The task of a request is cancelled when its client leaves: the engine stops at once.
        super().__init__(
            handler,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE,
            auto_decompress=False,
            lingering_time=5.0,
        )
        self.replies = replies
        self.refused = refused

        self.most = most_connections()

    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

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
        self._manager.refused("request")
        refusal = invalid("this is no HTTP request that can be understood")
        refusal.status = 400
        reply = self._manager.replies.error("none", refusal)
        reply.force_close()
        return reply
