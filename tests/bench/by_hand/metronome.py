"""A server that streams chat completions like a metronome and tells when it truly did.

    python tests/bench/by_hand/metronome.py --port 9000 --ttft 0.2 --pace 0.05 --tokens 64

Token k of a request is due `ttft` + k x `pace` seconds after the request was read, whatever the
others do; what is written down is when it was written. GET /truth sums that up in milliseconds;
POST /forget begins anew. One process, one event loop (uvloop where it is installed): about 20 us a
token, so that it can keep one core of load generator busy without being the bottleneck itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

MODEL = "metronome"
LENGTH = re.compile(rb"(?im)^content-length:\s*(\d+)")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Settings:
    """Seconds; `tokens` where a request does not say how many it wants."""

    ttft: float
    pace: float
    tokens: int
    early_role: bool = False
    """Whether the chunk with the role alone is sent at once, not right before the first token."""


@dataclass
class Exchange:
    """Times of the monotonic clock, seconds."""

    received: float
    tokens: int
    first: float = 0.0
    last: float = 0.0


@dataclass
class Truth:
    """What the server did since the last /forget."""

    done: list[Exchange] = field(default_factory=list)
    made: int = 0

    def as_json(self) -> dict[str, Any]:
        whole = [e for e in self.done if e.tokens > 1]
        return {
            "requests": len(whole),
            "ttft_ms": _summary([1000 * (e.first - e.received) for e in whole]),
            "tpot_ms": _summary([1000 * (e.last - e.first) / (e.tokens - 1) for e in whole]),
            "e2e_ms": _summary([1000 * (e.last - e.received) for e in whole]),
            "tokens": sum(e.tokens for e in whole),
            "seconds": max((e.last for e in whole), default=0.0)
            - min((e.received for e in whole), default=0.0),
        }


def _summary(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"mean": statistics.mean(values), "p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}


class Connection(asyncio.Protocol):
    """One connection, which may carry one request after the other."""

    def __init__(self, settings: Settings, truth: Truth, loop: asyncio.AbstractEventLoop) -> None:
        self.settings, self.truth, self.loop = settings, truth, loop
        self.buffer = b""
        self.open = True

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self.open = False

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            found = LENGTH.search(self.buffer[:end])
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(self.buffer) < whole:
                return
            head, body = self.buffer[:end], self.buffer[end + 4 : whole]
            self.buffer = self.buffer[whole:]
            self.answer(head.split(b" ", 2)[1].decode(), body)

    def answer(self, path: str, body: bytes) -> None:
        if path == "/v1/models":
            self.plain({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        elif path == "/truth":
            self.plain(self.truth.as_json())
        elif path == "/metrics":
            self.plain(f"vllm:generation_tokens_total {self.truth.made}\n")
        elif path == "/forget":
            self.truth.done = []
            self.plain({})
        elif path in ("/v1/chat/completions", "/v1/completions"):
            self.complete(json.loads(body), "chat" in path)
        elif path in ("/health", "/v1/health"):
            self.plain({"status": "ok"})
        else:
            self.plain({"error": {"message": f"no {path}"}}, b"404 Not Found")

    def plain(self, document: dict[str, Any] | str, status: bytes = b"200 OK") -> None:
        data = (document if isinstance(document, str) else json.dumps(document)).encode()
        self.transport.write(
            b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(data), data)
        )

    def complete(self, asked: dict[str, Any], is_chat: bool) -> None:
        tokens = int(asked.get("max_completion_tokens") or asked.get("max_tokens") or 0)
        tokens = tokens or self.settings.tokens
        prompt = asked["messages"][-1]["content"] if is_chat else asked["prompt"]
        usage = {"prompt_tokens": len(str(prompt)) // 4, "completion_tokens": tokens,
                 "total_tokens": len(str(prompt)) // 4 + tokens}  # fmt: skip
        if not asked.get("stream"):
            self.truth.made += 1
            said = (
                {"message": {"role": "assistant", "content": "word"}} if is_chat else {"text": "w"}
            )
            self.plain({"id": "x", "object": "chat.completion", "created": 0, "model": MODEL,
                        "choices": [{"index": 0, "finish_reason": "length", **said}],
                        "usage": {**usage, "completion_tokens": 1}})  # fmt: skip
            return
        exchange = Exchange(time.monotonic(), tokens)
        role = _event(_delta({"role": "assistant"})) if is_chat else b""
        early = self.settings.early_role
        self.transport.write(HEAD + role if early else HEAD)
        chunk = _event(_delta({"content": " word"}) if is_chat else _text(" word"))
        tail = _event(_delta({}, "length") if is_chat else _text("", "length"))
        if (asked.get("stream_options") or {}).get("include_usage"):
            tail += _event({**_delta({}), "choices": [], "usage": usage})
        tail += _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        due = self.loop.time() + self.settings.ttft
        first = chunk if early else role + chunk
        self.loop.call_at(due, self.token, exchange, (first, chunk), tail, due, tokens)

    def token(
        self, exchange: Exchange, chunks: tuple[bytes, bytes], tail: bytes, due: float, left: int
    ) -> None:
        """Send the first of `chunks`; those that follow are like the second."""
        if not self.open:
            return
        now = time.monotonic()
        self.truth.made += 1
        exchange.first = exchange.first or now
        chunk, others = chunks
        if left > 1:
            self.transport.write(chunk)
            due += self.settings.pace
            self.loop.call_at(due, self.token, exchange, (others, others), tail, due, left - 1)
            return
        exchange.last = now
        self.transport.write(chunk + tail)
        self.truth.done.append(exchange)


def _delta(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "chatcmpl-metronome", "object": "chat.completion.chunk", "created": 0,
            "model": MODEL, "choices": [choice]}  # fmt: skip


def _text(text: str, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return {"id": "cmpl-metronome", "object": "text_completion", "created": 0, "model": MODEL,
            "choices": [choice]}  # fmt: skip


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(event: dict[str, Any]) -> bytes:
    return _chunk(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")


async def serve(settings: Settings, port: int) -> None:
    """Serve until killed; says where on standard output."""
    loop, truth = asyncio.get_running_loop(), Truth()
    server = await loop.create_server(
        lambda: Connection(settings, truth, loop), "127.0.0.1", port, backlog=4096
    )
    address = server.sockets[0].getsockname()
    print(f"serving on http://127.0.0.1:{address[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft", type=float, default=0.2)
    parser.add_argument("--pace", type=float, default=0.05)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--early-role", action="store_true", help="send the role at once")
    given = parser.parse_args()
    settings = Settings(given.ttft, given.pace, given.tokens, given.early_role)
    try:
        import uvloop

        uvloop.run(serve(settings, given.port))
    except ImportError:
        asyncio.run(serve(settings, given.port))


if __name__ == "__main__":
    main()
