"""The thinnest proxies that could be the base of a gateway, for gateway_bases.py to measure.

Each reads a request whole, finds `model` in it, and passes the answer's bytes on as they come.
aiohttp is started as a program (`gateway_proxies.py PORT`), the two ASGI applications by an ASGI
server (`uvicorn gateway_proxies:asgi_httpx`). UPSTREAM is the engine's URL.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

UPSTREAM = os.environ.get("UPSTREAM", "")
HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}


def _rewritten(body: bytes) -> bytes:
    document = json.loads(body)
    document["model"] = "fake"
    return json.dumps(document).encode()


# aiohttp, server and client


def run_aiohttp(port: int) -> None:
    import aiohttp
    import uvloop
    from aiohttp import web

    async def proxy(request: web.Request) -> web.StreamResponse:
        body = _rewritten(await request.read())
        url = UPSTREAM + request.path
        async with request.app[session].post(url, data=body, headers=HEADERS) as answer:
            kind = answer.headers["content-type"]
            response = web.StreamResponse(status=answer.status, headers={"content-type": kind})
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            await response.write_eof()
            return response

    session = web.AppKey("session", aiohttp.ClientSession)

    async def make() -> web.Application:
        app = web.Application()
        connector = aiohttp.TCPConnector(limit=0)
        app[session] = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        app.router.add_post("/v1/chat/completions", proxy)
        return app

    loop = uvloop.new_event_loop()
    web.run_app(make(), host="127.0.0.1", port=port, loop=loop, print=None, access_log=None)


# ASGI: the server is uvicorn or granian, the client httpx or aiohttp

_client: Any = None


async def _read(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def _begin(send: Any, status: int, kind: str) -> None:
    headers = [(b"content-type", kind.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send(send: Any, data: bytes, more: bool) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def asgi_httpx(scope: Any, receive: Any, send: Any) -> None:
    """ASGI with httpx, whose HTTP/1.1 is h11."""
    global _client
    if scope["type"] != "http":
        return
    import httpx

    if _client is None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=1000)
        _client = httpx.AsyncClient(limits=limits, timeout=60, trust_env=False)
    body = _rewritten(await _read(receive))
    url = UPSTREAM + scope["path"]
    async with _client.stream("POST", url, content=body, headers=HEADERS) as answer:
        await _begin(send, answer.status_code, answer.headers["content-type"])
        async for data in answer.aiter_raw():
            await _send(send, data, True)
        await _send(send, b"", False)


async def asgi_aiohttp(scope: Any, receive: Any, send: Any) -> None:
    """ASGI with aiohttp's client."""
    global _client
    if scope["type"] != "http":
        return
    import aiohttp

    if _client is None:
        connector = aiohttp.TCPConnector(limit=0)
        _client = aiohttp.ClientSession(connector=connector, auto_decompress=False)
    body = _rewritten(await _read(receive))
    async with _client.post(UPSTREAM + scope["path"], data=body, headers=HEADERS) as answer:
        await _begin(send, answer.status, answer.headers["content-type"])
        async for data in answer.content.iter_any():
            await _send(send, data, True)
        await _send(send, b"", False)


if __name__ == "__main__":
    run_aiohttp(int(sys.argv[1]))
