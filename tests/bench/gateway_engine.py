"""A server that streams made-up tokens at a steady pace: the engine behind a gateway under test.

python gateway_engine.py        prints its port, then serves until it is killed.

The last message of a chat says what to send: "events=100 rate=20" is 100 tokens, 20 a second, the
first one at once. Every token carries the moment at which it was written, `t=NANOSECONDS;` of the
clock that all processes of a machine share, so that a client can tell how long it was under way.
Standard library; with uvloop where that can be imported.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import cast

_ORDER = re.compile(rb"events=(\d+) rate=(\d+)")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:\s*(\d+)")
_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
MODEL = "fake"


def _event(choices: list[dict[str, object]], **more: object) -> bytes:
    document = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk",
                "created": 1_700_000_000, "model": MODEL, "choices": choices, **more}  # fmt: skip
    return b"data: " + json.dumps(document).encode() + b"\n\n"


_TOKEN = _event([{"index": 0, "delta": {"content": " t=%d;"}, "finish_reason": None}])
_FINISH = _event([{"index": 0, "delta": {}, "finish_reason": "length"}])


def _end(events: int) -> bytes:
    usage = {"prompt_tokens": 10, "completion_tokens": events, "total_tokens": events + 10}
    return _FINISH + _event([], usage=usage) + b"data: [DONE]\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Connection(asyncio.Protocol):
    """One connection; its requests are answered one after another."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.received = b""
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def connection_lost(self, _: Exception | None) -> None:
        if self.timer:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, rest = self.received.partition(b"\r\n\r\n")
        length = int(match[1]) if (match := _LENGTH.search(head)) else 0
        if found and len(rest) >= length:
            self.received = rest[length:]
            self._answer(head.split(b" ", 2)[1], rest[:length])

    def _answer(self, path: bytes, body: bytes) -> None:
        if order := _ORDER.search(body):
            self._stream(int(order[1]), 1 / int(order[2]))
            return
        document: object = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        if path != b"/v1/models":
            document = {"choices": [{"message": {"role": "assistant", "content": "yes"}}],
                        "usage": {"prompt_tokens": 1, "completion_tokens": 1}}  # fmt: skip
        text = b"" if path == b"/metrics" else json.dumps(document).encode()
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(text), text)
        )

    def _stream(self, events: int, pause: float) -> None:
        """The first token at once, each later one when its time has come, however late we are."""
        self.transport.write(_STREAM)
        began, sent = self.loop.time(), 0

        def tick() -> None:
            nonlocal sent
            self.transport.write(_chunk(_TOKEN % time.monotonic_ns()))
            sent += 1
            if sent < events:
                self.timer = self.loop.call_at(began + sent * pause, tick)
            else:
                self.transport.write(_chunk(_end(events)) + b"0\r\n\r\n")

        tick()


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.platform == "linux":
        try:
            import uvloop
        except ImportError:
            asyncio.run(_serve())
        else:
            uvloop.run(_serve())
