"""Streams from gateway_engine.py, directly or through a gateway: what they took, to the token.

Bare asyncio protocols, since a client that is slow itself would be taken for a slow gateway.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import psutil
from commands import BenchError, end

T = TypeVar("T")
ENGINE = Path(__file__).with_name("gateway_engine.py")
START_TIMEOUT = 30.0
WARM_UP = 5
"""Requests on each connection before those that count."""
RAMP_SECONDS = 2.0
"""Streams are opened over this time: a thousand at once would measure the opening alone."""
_STAMP = re.compile(rb"t=(\d+);")
_CONTENT = re.compile(rb'"content": ?"[^"]')
_STATUS = re.compile(rb"HTTP/1\.[01] (\d+)")
_DONE = b"data: [DONE]"
_LAST = b"0\r\n\r\n"


@dataclass
class Stream:
    """One stream; seconds. `ttft` is from the request to the first token's arrival."""

    asked: float
    ttft: float | None = None
    delays: list[float] = field(default_factory=list)
    """Of each token that carries a time: from its writing in the engine to its arrival here."""
    status: int = 0
    whole: bool = False


@dataclass(frozen=True)
class Used:
    """What a process tree took while something ran."""

    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int


class _Client(asyncio.Protocol):
    """One connection; `ask` sends a request and waits for the end of its answer."""

    def __init__(self) -> None:
        self.rest = b""
        self.stream: Stream | None = None
        self.ended: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    async def ask(self, request: bytes) -> Stream:
        self.rest, self.stream = b"", Stream(time.monotonic())
        self.ended = asyncio.get_running_loop().create_future()
        if self.transport.is_closing():
            return self.stream
        self.transport.write(request)
        await self.ended
        return self.stream

    def data_received(self, data: bytes) -> None:
        now, stream = time.monotonic_ns(), self.stream
        if stream is None:
            return
        self.rest += data
        if not stream.status and (match := _STATUS.match(self.rest)):
            stream.status = int(match[1])
        used = 0
        for match in _STAMP.finditer(self.rest):
            stream.delays.append((now - int(match[1])) / 1e9)
            used = match.end()
        if stream.ttft is None and _CONTENT.search(self.rest):
            stream.ttft = now / 1e9 - stream.asked
        self.rest = self.rest[max(used, len(self.rest) - 4096) :]
        if _DONE in self.rest:
            stream.whole = True
        refused = stream.status not in (0, 200) and b"\r\n\r\n" in self.rest
        if refused or (stream.whole and self.rest.endswith(_LAST)):
            self._finish()

    def connection_lost(self, _: Exception | None) -> None:
        self._finish()

    def _finish(self) -> None:
        if self.ended and not self.ended.done():
            self.ended.set_result(None)


def request(endpoint: str, model: str, events: int, rate: int) -> bytes:
    """A streamed chat request to gateway_engine.py for so many tokens, `rate` of them a second."""
    return post(endpoint, {
        "model": model, "stream": True, "max_tokens": events,
        "messages": [{"role": "user", "content": f"events={events} rate={rate}"}],
    })  # fmt: skip


def post(endpoint: str, document: dict[str, Any]) -> bytes:
    """The bytes of a chat request."""
    body = json.dumps(document)
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {urlsplit(endpoint).netloc}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def _open(endpoint: str) -> _Client:
    address = urlsplit(endpoint)
    _, client = await asyncio.get_running_loop().create_connection(
        _Client, address.hostname, address.port
    )
    return client


def in_turns(asked: Sequence[tuple[str, bytes]], rounds: int) -> list[list[float]]:
    """Seconds to the first token of each (endpoint, request): one at a time, all in turns.

    Raises BenchError where a stream is not whole.
    """

    async def measure() -> list[list[float]]:
        clients = [await _open(endpoint) for endpoint, _ in asked]
        found: list[list[float]] = [[] for _ in asked]
        for number in range(WARM_UP + rounds):
            places = range(len(asked)) if number % 2 == 0 else reversed(range(len(asked)))
            for place in places:
                stream = await clients[place].ask(asked[place][1])
                if not stream.status:  # the server did not keep the connection: a new one
                    clients[place] = await _open(asked[place][0])
                    stream = await clients[place].ask(asked[place][1])
                if not stream.whole or stream.ttft is None:
                    raise BenchError(f"{asked[place][0]}: status {stream.status}, not whole")
                if number >= WARM_UP:
                    found[place].append(stream.ttft)
        for client in clients:
            client.transport.close()
        return found

    return _run(measure())


def at_once(endpoint: str, model: str, streams: int, events: int, rate: int) -> list[Stream]:
    """So many streams at the same time, each on a connection of its own."""

    async def one(order: bytes, delay: float) -> Stream:
        await asyncio.sleep(delay)
        client = await _open(endpoint)
        stream = await client.ask(order)
        client.transport.close()
        return stream

    async def measure() -> list[Stream]:
        order = request(endpoint, model, events, rate)
        waits = [RAMP_SECONDS * number / streams for number in range(streams)]
        return await asyncio.gather(*(one(order, wait) for wait in waits))

    return _run(measure())


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


@contextmanager
def engine(log: Path) -> Iterator[str]:
    """gateway_engine.py in a process of its own; gives its endpoint."""
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, str(ENGINE)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=errors, start_new_session=True,
        )  # fmt: skip
    assert process.stdout
    try:
        line = process.stdout.readline()
        if not line:
            raise BenchError(f"the made-up engine did not start; see {log}")
        yield f"http://127.0.0.1:{int(line)}"
    finally:
        process.stdout.close()
        end(process)


@contextmanager
def watched(pid: int) -> Iterator[list[Used]]:
    """What a process and its children take meanwhile; the list is filled at the end."""
    found: list[Used] = []
    before, began = _cpu(pid), time.monotonic()
    yield found
    wall = time.monotonic() - began
    found.append(Used(_cpu(pid) - before, wall, _memory(pid)))


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _cpu(pid: int) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in _tree(pid))


def _memory(pid: int) -> int:
    """Resident bytes; pages that processes share are counted once for each."""
    return sum(each.memory_info().rss for each in _tree(pid))


def percentile(values: Sequence[float], share: int) -> float:
    """The `share`-th percentile, of 100."""
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]
