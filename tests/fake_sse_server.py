"""A chat completion server that knows the truth: when it sent what, and what it did wrong.

Standard library only. One asyncio loop in a thread; times are `time.monotonic()`, which every
process of one machine shares, so a client's stamps can be compared with `Exchange` directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many", 500: "Broken"}
FAULTS = (
    "http_400", "http_429", "http_500", "sse_error", "truncated", "reset", "drop", "empty", "hang",
)  # fmt: skip
"""`drop` closes the connection before any answer, `reset` in mid-stream without an end chunk."""


@dataclass(frozen=True)
class Script:
    """How the server answers. Seconds; `first` tokens come in the first chunk, then `each`."""

    ttft: float = 0.05
    tpot: float = 0.01
    tokens: int = 16
    first: int = 1
    each: int = 1
    role: bool = True
    usage: bool = True
    reasoning: int = 0
    word: str = ""
    finish: str = "length"
    faults: tuple[str | None, ...] = (None,)
    """Taken in turn, one a request."""
    counted: float = 1.0
    """What /metrics tells, as a share of the truth."""
    metrics: bool = True
    key: str | None = None
    slots: int = 0
    """Requests answered at the same time, the others wait; 0: all."""
    accept: float = 0.0
    """Seconds before a new connection is read from."""


@dataclass
class Exchange:
    """What truly happened to one chat request."""

    received: float
    fault: str | None
    prompt: str
    body: dict[str, Any] = field(default_factory=dict)
    written: list[float] = field(default_factory=list)
    tokens: int = 0


class FakeServer:
    """`url` and `exchanges` are for the test; use `serve`."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.exchanges: list[Exchange] = []
        self.predicted = 0
        self.url = ""
        self._faults = itertools.cycle(script.faults)
        self._slots = asyncio.Semaphore(script.slots or 1_000_000)

    def of(self, prompt: str) -> Exchange:
        """The exchange of a prompt, found by its nonce, [abcdef01]."""
        mark = prompt[: prompt.index("]") + 1]
        return next(e for e in self.exchanges if e.prompt.startswith(mark))

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError)
        connected = time.monotonic()
        with contextlib.suppress(*ends):
            await asyncio.sleep(self.script.accept)
            while await self._request(reader, writer, connected):
                connected = 0.0
        with contextlib.suppress(ConnectionError):
            writer.close()

    async def _request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connected: float
    ) -> bool:
        """One request; the first one of a connection that was read late came when it was made."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return False
        received = connected if self.script.accept and connected else time.monotonic()
        _, path, _ = head.split("\r\n", 1)[0].split(" ")
        length = re.search(r"(?im)^content-length:\s*(\d+)", head)
        raw = await reader.readexactly(int(length[1])) if length else b""
        if self.script.key and f"Bearer {self.script.key}" not in head:
            return _plain(writer, 401, {"error": {"message": "no such key"}})
        body = json.loads(raw) if raw else {}
        if path == "/v1/chat/completions":
            return await self._chat(writer, body, received)
        return self._other(writer, path, body)

    def _other(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> bool:
        if path == "/v1/models":
            return _plain(writer, 200, {"data": [{"id": "fake-model"}]})
        if path == "/tokenize":
            return _plain(writer, 200, {"tokens": body["content"].split()})
        if path == "/metrics" and self.script.metrics:
            told = round(self.predicted * self.script.counted)
            return _plain(writer, 200, f"# HELP x\nllamacpp:tokens_predicted_total {told}\n")
        return _plain(writer, 404, {"error": {"message": f"no {path}"}})

    async def _chat(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], received: float
    ) -> bool:
        prompt = body["messages"][-1]["content"]
        if not body.get("stream"):
            self.predicted += 1
            return _plain(writer, 200, {"choices": [{"message": {"content": "word"}}],
                                        "usage": self._usage(prompt, 1)})  # fmt: skip
        fault = next(self._faults)
        exchange = Exchange(received, fault, prompt, body)
        self.exchanges.append(exchange)
        if fault == "drop":
            return False
        if fault and fault.startswith("http_"):
            return _plain(writer, int(fault[5:]), {"error": {"message": f"told to: {fault}"}})
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        async with self._slots:
            return await self._stream(writer, exchange)

    async def _stream(self, writer: asyncio.StreamWriter, exchange: Exchange) -> bool:
        script, fault = self.script, exchange.fault
        if script.role:
            _event(writer, {"choices": [{"delta": {"role": "assistant", "content": None}}]})
        begun = time.monotonic() if script.slots else exchange.received
        await asyncio.sleep(max(0.0, begun + script.ttft - time.monotonic()))
        if fault == "hang":
            await asyncio.sleep(3600)
        left = 0 if fault == "empty" else script.tokens
        while left > 0:
            size = min(left, script.each if exchange.written else script.first)
            kind = "reasoning_content" if exchange.tokens < script.reasoning else "content"
            word = script.word or f" word{exchange.tokens}"
            exchange.written.append(time.monotonic())
            _event(writer, {"choices": [{"index": 0, "delta": {kind: word * size}}]})
            exchange.tokens += size
            self.predicted += size
            left -= size
            if fault in ("sse_error", "truncated", "reset") and left <= script.tokens // 2:
                return _break(writer, fault)
            if left:
                await asyncio.sleep(script.tpot * min(left, script.each))
        return self._finish(writer, exchange)

    def _finish(self, writer: asyncio.StreamWriter, exchange: Exchange) -> bool:
        finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": self.script.finish}]}
        _event(writer, finish)
        if self.script.usage:
            usage = self._usage(exchange.prompt, exchange.tokens)
            _event(writer, {"choices": [], "usage": usage})
        _chunk(writer, b"data: [DONE]\n\n")
        _chunk(writer, b"")
        return True

    def _usage(self, prompt: str, output: int) -> dict[str, Any]:
        return {
            "prompt_tokens": 20 + 2 * len(prompt.split()),
            "completion_tokens": output,
            "prompt_tokens_details": {"cached_tokens": 5},
        }


def _break(writer: asyncio.StreamWriter, fault: str) -> bool:
    if fault == "sse_error":
        _event(writer, {"error": {"message": "the engine died", "code": 500}})
    if fault != "reset":
        _chunk(writer, b"")
        return True
    return False


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _event(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    _chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")


def _plain(writer: asyncio.StreamWriter, status: int, body: dict[str, Any] | str) -> bool:
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    head = f"HTTP/1.1 {status} {REASONS.get(status, 'X')}\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    return True


@contextlib.contextmanager
def serve(script: Script | None = None) -> Iterator[FakeServer]:
    """Serve on a free loopback port until the context is left."""
    server = FakeServer(script or Script())
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        listener.close()
        open_ones = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
