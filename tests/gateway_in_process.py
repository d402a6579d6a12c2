"""A gateway and made-up engines in one event loop, for tests of the gateway's own doing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from deployer.gateway.app import App
from deployer.gateway.listening import Listener
from deployer.gateway.routing import Table, TableFile, Upstream
from deployer.gateway.upstreams import make_session
from deployer.recipe.deployment import Gateway, Route

WORDS = ("one", " two", " three")


class FakeEngine:
    """Answers chats as it is told: `script` holds a behaviour for each request, then it is good.

    Behaviours: "" (good), a status ("500"; ("400", {...}) with a body), drop (close without an
    answer), cut (close in mid-stream), short (end without the end mark), error (an error event,
    then an end mark), error-first, hang (no answer), stall (no more after two tokens), slow (a
    token each 5 ms until the client leaves), text (no JSON, no stream).
    """

    def __init__(self, *script: object) -> None:
        self.script = deque(script)
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.left = 0
        self.url = ""
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> FakeEngine:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"(?im)^content-length: *(\d+)", head)
            raw = await reader.readexactly(int(length[1])) if length else b"{}"
            self.heads.append(head)
            self.bodies.append(json.loads(raw))
            await self._answer(self.bodies[-1], reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _answer(
        self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        told = self.script.popleft() if self.script else ""
        status, given = told if isinstance(told, tuple) else (told, {"error": {"message": "told"}})
        if isinstance(status, str) and status.isdigit():
            write_whole(writer, int(status), json.dumps(given).encode())
        elif told == "drop":
            return
        elif told == "hang":
            await reader.read()
            self.left += 1
        elif told == "text":
            write_whole(writer, 200, b"hello")
        elif not body.get("stream"):
            usage = {"prompt_tokens": 5, "completion_tokens": 3}
            answer = {"choices": [{"message": {"content": "".join(WORDS)}}], "usage": usage}
            write_whole(writer, 200, json.dumps(answer).encode())
        else:
            await self._stream(str(told), body, reader, writer)
        await writer.drain()

    async def _stream(
        self,
        told: str,
        body: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        if told != "error-first":
            write_event(writer, {"choices": [{"delta": {"role": "assistant", "content": None}}]})
        broken = told in ("cut", "short", "error", "stall")
        for word in () if told == "error-first" else WORDS[: 2 if broken else 3]:
            write_event(writer, {"choices": [{"delta": {"content": word}}]})
        if told == "slow":
            await self._until_left(reader, writer)
        elif told == "stall":
            await reader.read()
        elif told in ("error", "error-first"):
            write_event(writer, {"error": {"message": "out of luck"}})
        if told == "cut":
            return
        if not broken and told != "error-first":
            write_event(writer, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
            if (body.get("stream_options") or {}).get("include_usage"):
                usage = {"prompt_tokens": 5, "completion_tokens": 3}
                write_event(writer, {"choices": [], "usage": usage})
        if told != "short":
            write_chunk(writer, b"data: [DONE]\n\n")
        write_chunk(writer, b"")

    async def _until_left(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = asyncio.ensure_future(reader.read())
        while not gone.done():
            write_event(writer, {"choices": [{"delta": {"content": "x"}}]})
            await asyncio.wait([gone], timeout=0.005)
        self.left += 1
        raise ConnectionError


def write_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def write_event(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    write_chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")


def write_whole(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    writer.write(head.encode() + b"\r\nConnection: close\r\n\r\n" + body)


def upstream(name: str, url: str, **changes: Any) -> Upstream:
    values = {
        "name": name, "instance": f"d.{name}.1", "url": url, "model": f"model-of-{name}",
        "engine": "llama.cpp", "bundle": "b", "digest": "d", "state": "ready", "slots": 2,
        "context": 512, **changes,
    }  # fmt: skip
    return Upstream(**values)


class Gate:
    """A running gateway: its `url`, its `app`, its `events`; `client` asks it."""

    def __init__(
        self, app: App, listener: Listener, url: str, client: aiohttp.ClientSession, path: Path
    ) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self.app = app
        self.listener = listener
        self.url = url
        self.client = client
        self.path = path

    async def chat(self, **fields: Any) -> tuple[int, Any, Any]:
        """(status, headers, body) of a chat; the body is text for a stream."""
        headers = fields.pop("headers", {})
        body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], **fields}
        async with self.client.post("/v1/chat/completions", json=body, headers=headers) as answer:
            text = await answer.text()
            stream = answer.content_type == "text/event-stream"
            return answer.status, answer.headers, text if stream else json.loads(text)

    def write(self, table: Table) -> None:
        """Another table, in force at once."""
        self.path.write_text(table.model_dump_json())
        self.app.tables.check()
        self.app.apply()

    def metric(self, name: str, **labels: str) -> float | None:
        return self.app.metrics.registry.get_sample_value(name, labels or None)

    async def settle(self, seconds: float = 2.0) -> None:
        """Wait until no request runs or waits."""
        until = time.monotonic() + seconds
        while self.app.running or not self.app.admission.idle:
            assert time.monotonic() < until, "requests are left"
            await asyncio.sleep(0.002)


def table(
    servers: dict[str, str | Upstream], gateway: dict[str, Any] | None = None, **route: Any
) -> Table:
    """A table with one route `chat` to all servers, unless `route` says otherwise."""
    upstreams = tuple(
        each if isinstance(each, Upstream) else upstream(name, each)
        for name, each in servers.items()
    )
    fields = {"model": "chat", "to": dict.fromkeys(servers, 1.0), **route}
    return Table(
        deployment="d", generation=1, gateway=Gateway(port=0, **(gateway or {})),
        routes=(Route(**fields),), upstreams=upstreams,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def gate(folder: Path, told: Table) -> AsyncIterator[Gate]:
    """A gateway that goes by a table; nothing looks after it but the test."""
    path = folder / "table.json"
    path.write_text(told.model_dump_json())
    events: list[tuple[str, dict[str, object]]] = []

    def on_event(event: str, /, **fields: object) -> None:
        events.append((event, fields))

    async with make_session() as session:
        app = App(TableFile(path, on_event), session, on_event, time.monotonic)
        app.apply()
        app.keep_keys()
        listener = Listener(app.handle, app.replies, app.metrics.refused)
        listening = socket.create_server(("127.0.0.1", 0))
        server = await listener.listen(listening, None)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            async with aiohttp.ClientSession(base_url=url) as client:
                made = Gate(app, listener, url, client, path)
                made.events = events
                yield made
        finally:
            server.close()
            app.shadows.cancel()
            await listener.shutdown(0.5)
