"""Ask an engine, and tell what went wrong in words that the proxy can act on."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from deployer.gateway.outcome import Kind
from deployer.gateway.refusals import LIMITED, Refusal, invalid, server_failed, too_slow
from deployer.gateway.routing import Upstream
from deployer.gateway.watch import message_of

CONNECT_SECONDS = 2.0
MAX_ANSWER = 64 << 20
"""Bytes of an answer that is not streamed, above which the engine is taken for broken."""
MAX_REFUSAL = 1 << 20
BROKEN_CONNECTION = (aiohttp.ClientError, TimeoutError, OSError)
"""What is raised while an engine is asked or its answer read; `_translated` says what it means."""
_TOO_LONG = re.compile(
    r"exceed_context_size|context (?:length|size|window)|maximum model length|the context is",
    re.IGNORECASE,
)
_NOT_OFFERED = (404, 405, 501)


@dataclass
class Failed(Exception):
    """A server gave no answer, and nothing of one was passed on yet.

    `reached`: whether the request may have come to it. `died`: whether the connection ended under
    it, so that the request itself may be what ended the engine. `refusal` is what the client gets
    where no other server can answer.
    """

    kind: Kind
    refusal: Refusal
    reached: bool = True
    died: bool = False


def make_session() -> aiohttp.ClientSession:
    """The client for engines; to be closed at the end.

    Each request gets a connection of its own. One that was kept may be closed by the engine in the
    moment that a request is sent over it: of llama.cpp's, 7 requests of 120 were lost that way.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
    )


class Answer:
    """An engine's answer with status 200, yet to be read. `silence` is as for `answer_of`.

    One timer watches over the whole answer: setting one for each read, as aiohttp's `sock_read`
    does, doubled what the read costs.
    """

    def __init__(self, response: aiohttp.ClientResponse, silence: float) -> None:
        self.content_type = response.content_type
        self._response = response
        self._read = response.content.readany
        self._silence = silence
        self._since: float | None = None
        self._over = False
        self._timer = asyncio.get_running_loop().call_later(silence, self._look)

    async def read(self) -> bytes:
        """What comes next, b"" at the end; raises Failed."""
        self._since = time.monotonic()
        try:
            return await self._read()
        except BROKEN_CONNECTION as error:
            if self._over:
                raise Failed("timeout", too_slow(self._silence)) from error
            raise _translated(error, self._silence) from error
        finally:
            self._since = None

    async def whole(self, most: int = MAX_ANSWER) -> bytes:
        """All of it; raises Failed above `most` bytes."""
        parts = bytearray()
        while chunk := await self.read():
            parts += chunk
            if len(parts) > most:
                raise Failed("upstream_error", server_failed(f"sent more than {most >> 20} MiB"))
        return bytes(parts)

    def close(self) -> None:
        """Close the connection, so that the engine stops its work where it has not ended."""
        self._timer.cancel()
        self._response.close()

    def _look(self) -> None:
        waited = 0.0 if self._since is None else time.monotonic() - self._since
        if waited < self._silence:  # nobody waits, or not for so long
            left = self._silence - waited
            self._timer = asyncio.get_running_loop().call_later(left, self._look)
        else:
            self._over = True
            self._response.close()


@asynccontextmanager
async def answer_of(
    session: aiohttp.ClientSession,
    upstream: Upstream,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    silence: float,
) -> AsyncIterator[Answer]:
    """Post a request and give its answer.

    Leaving the context before the end closes the connection, so that the engine stops its work.
    `silence` is how long nothing may come, in seconds. Raises Failed, and Refusal where the engine
    says that the request is wrong.
    """
    response: aiohttp.ClientResponse | None = None
    try:
        async with asyncio.timeout(silence):
            response = await session.post(
                upstream.url + path, data=body, headers=headers, allow_redirects=False
            )
            answer = Answer(response, silence)
            if response.status != 200:
                raise await _no_answer(response.status, answer)
    except BROKEN_CONNECTION as error:
        if response is not None:
            answer.close()
        raise _translated(error, silence) from error
    except BaseException:
        if response is not None:
            answer.close()
        raise
    try:
        yield answer
    finally:
        answer.close()


def _translated(error: Exception, silence: float) -> Failed:
    """What aiohttp, or the system under it, says of a connection, as Failed."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Failed("upstream_error", server_failed("cannot be reached"), reached=False)
    if isinstance(error, TimeoutError):
        return Failed("timeout", too_slow(silence))
    if isinstance(error, aiohttp.ClientPayloadError):
        return Failed("truncated", server_failed("broke off in its answer"), died=True)
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return Failed("upstream_error", server_failed("ended the connection"), died=True)
    return Failed("upstream_error", server_failed("answered what is not HTTP"))


async def _no_answer(status: int, answer: Answer) -> Exception:
    """The exception for an answer with another status than 200."""
    body = await _object_of(answer)
    told = message_of(body)
    if status in (400, 413, 422):
        return _wrong_request(told, json.dumps(body) if body else "")
    if status in _NOT_OFFERED:
        return Refusal(404, told or "this model does not offer that", reason="", code="not_offered")
    if status in (408, 429):
        return Failed("busy", _busy_itself())
    return Failed("upstream_error", server_failed(f"answered with status {status}"))


def _wrong_request(told: str, whole: str) -> Refusal:
    """400 with the engine's own words, and one code for a prompt that is too long."""
    if _TOO_LONG.search(told) or "exceed_context_size" in whole:
        refusal = invalid(told or "the prompt is too long", code="context_length_exceeded")
    else:
        refusal = invalid(told or "the server refused the request")
    refusal.reason = ""
    return refusal


def _busy_itself() -> Refusal:
    return Refusal(
        429, "the server is busy", reason="", type_=LIMITED, code="server_busy", retry_after=1
    )


async def _object_of(answer: Answer) -> object:
    """The JSON of an error's body, None where there is none."""
    try:
        return json.loads(await answer.whole(MAX_REFUSAL))
    except (ValueError, RecursionError):
        return None
