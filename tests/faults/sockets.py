"""Broken HTTP over real sockets: from clients to the real gateway, and from engines back to it.

    python tests/faults/sockets.py clients|engines [--count N] [--seed S] [--out FILE]

The engine is made up; the gateway is the process that `deployer serve` runs. It must stay up,
answer with documented statuses only, never end a stream well that did not end well, and hold no
more memory and files at the end than at the beginning. Exits with 1 where it does not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
from broken_http import broken_answer, broken_request, framed, good, good_answer, numbered
from gateway_process import Running, running_gateway, table, upstream
from measured import write

STATUSES = frozenset(
    {100, 200, 400, 401, 403, 404, 405, 408, 413, 415, 417, 421, 429, 431, 502, 503, 504}
)
"""What may come back; 500 would be a fault of the gateway itself."""
AT_ONCE = 16
ROUTES = 50
"""Engines that are ill in turn, each behind a route of its own."""
SILENCE = 0.25
"""Seconds without a byte after which a request is taken for one that awaits its rest."""
PATIENCE = 5.0
EVERY = 500
GROWTH_MIB = 48.0
FILES = 16
_NUMBER = re.compile(rb'"user":"(\d+)"')
_FRAME = re.compile(rb"\r\n[0-9a-f]+\r\n")
"""What stands between two chunks of a body."""
_END = re.compile(rb"data: ?\[DONE\]")
"""The space is optional in server-sent events, and the gateway passes on what the engine wrote."""
_STATUS = re.compile(rb"HTTP/\d\.\d (\d{3}) ")
_STRANGE = re.compile(rb"[A-Z]+ [^ \r\n]+( HTTP/(?!1\.[01])[^ \r\n]*)?\r\n")
"""A request of no version of HTTP that the gateway speaks."""


# The made-up engine


class Engine:
    """Answers requests that carry a number in `user` with what `answer` makes of it."""

    def __init__(self, answer: Callable[[int, bool], bytes]) -> None:
        self.answer = answer
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            if head.startswith(b"GET"):
                writer.write(framed(b"", "text/plain", chunked=False))
            else:
                told = _NUMBER.search(body)
                streamed = b'"stream":true' in body
                if told:
                    writer.write(self.answer(int(told[1]), streamed))
                else:
                    writer.write(good_answer(streamed))
            await writer.drain()
        writer.close()


@contextmanager
def serving(engine: Engine) -> Iterator[Engine]:
    """Serve it in a thread until the context is left."""
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def main() -> None:
        listener = await asyncio.start_server(engine.handle, "127.0.0.1", 0)
        engine.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        ready.set()
        await asyncio.Event().wait()

    task = loop.create_task(main())
    thread = threading.Thread(target=_run, args=(loop, task), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield engine
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)


def _run(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    with suppress(asyncio.CancelledError):
        loop.run_until_complete(task)


# Asking


async def exchange(port: int, sent: bytes, rng: random.Random, whole: bool) -> bytes:
    """What comes back of what is sent in one to three pieces.

    `whole` requests must be answered to their end; others are given up after a short silence.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    back = b""
    try:
        cuts = sorted(rng.randrange(len(sent) + 1) for _ in range(rng.choice((0, 0, 1, 2))))
        for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            writer.write(sent[a:b])
            await writer.drain()
            if b < len(sent):
                await asyncio.sleep(0.002)
        while True:
            async with asyncio.timeout(PATIENCE if whole else SILENCE):
                piece = await reader.read(1 << 16)
            if not piece:
                return back
            back += piece
    except (ConnectionError, TimeoutError):
        if whole and not back:
            raise
        return back
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


class Trial:
    """Counts what came back, and what was wrong with it."""

    def __init__(self, gateway: Running) -> None:
        self.gateway = gateway
        self.process = psutil.Process(gateway.child.pid)
        self.statuses: Counter[str] = Counter()
        self.wrong: list[tuple[int, str]] = []
        self.slowest = 0.0
        self.seen: list[tuple[float, int]] = []

    def look(self) -> None:
        """Note the gateway's memory and files."""
        self.seen.append((self.process.memory_info().rss / 2**20, self.process.num_fds()))

    def judge(self, number: int, back: bytes, answered: bytes | None) -> None:
        """`answered` is what the engine sent, where it was the engine that was ill."""
        found = [int(status) for status in _STATUS.findall(back)]
        self.statuses.update(map(str, found) if found else ["none"])
        if back and not found:
            self.wrong.append((number, f"no HTTP came back: {back[:80]!r}"))
        for status in set(found) - STATUSES:
            self.wrong.append((number, f"status {status}: {back[:300]!r}"))
        if b"Traceback" in back:
            self.wrong.append((number, "a traceback came back"))
        if answered is not None:
            self._judge_stream(number, back, answered)

    def _judge_stream(self, number: int, back: bytes, answered: bytes) -> None:
        answered = _FRAME.sub(b"", answered)
        ended_well, failed = bool(_END.search(back)), b'"error"' in back
        if ended_well and b"[DONE]" not in answered:
            self.wrong.append((number, "an end mark that the engine did not send"))
        if b"text/event-stream" in back and not ended_well and not failed:
            self.wrong.append((number, f"a stream without end mark or error: {back[-200:]!r}"))
        if not back:
            self.wrong.append((number, "nothing came back"))

    async def sane(self, model: str = "chat") -> None:
        """A good request is answered, and in time."""
        started = time.monotonic()
        try:
            back = await exchange(self.gateway.port, good(model), random.Random(0), whole=True)
        except (OSError, TimeoutError) as error:
            back = repr(error).encode()
        self.slowest = max(self.slowest, time.monotonic() - started)
        if b" 200 OK" not in back:
            self.wrong.append((-1, f"a good request is answered with {back[:200]!r}"))

    def figures(self, count: int) -> dict[str, Any]:
        (memory, files), (last_memory, last_files) = self.seen[1], self.seen[-1]
        if last_memory > memory + GROWTH_MIB:
            self.wrong.append((-1, f"memory grew from {memory:.0f} to {last_memory:.0f} MiB"))
        if last_files > files + FILES:
            self.wrong.append((-1, f"open files grew from {files} to {last_files}"))
        if "Traceback" in self.gateway.log:
            self.wrong.append((-1, f"the log holds a traceback: {self.gateway.log[-2000:]}"))
        return {
            "inputs": count,
            "statuses": dict(sorted(self.statuses.items())),
            "wrong": len(self.wrong),
            "slowest_good_request_ms": round(self.slowest * 1000),
            "memory_mib": [round(memory, 1), round(last_memory, 1)],
            "open_files": [files, last_files],
        }


async def run(trial: Trial, kind: str, seed: int, count: int, engine: Engine) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        rng = random.Random(f"{seed} {kind} {number}")
        async with places:
            if kind == "clients":
                sent, answered = broken_request(rng), None
            else:
                streamed = rng.random() < 0.7
                sent = numbered(f"chat{number % ROUTES}", number, streamed)
                answered = engine.answer(number, streamed)
            try:
                back = await exchange(trial.gateway.port, sent, rng, whole=kind == "engines")
            except (OSError, TimeoutError) as error:
                trial.wrong.append((number, f"no answer: {error!r}"))
                return
            trial.judge(number, back, answered)
            if answered is None and _STRANGE.match(sent) and _STATUS.findall(back)[:1] == [b"200"]:
                trial.wrong.append((number, f"a strange version is answered: {sent[:80]!r}"))
            if answered is not None:  # a server that fails three times in a row is let alone
                await trial.sane(f"chat{number % ROUTES}")

    trial.look()
    for first in range(0, count, EVERY):
        await asyncio.gather(*(one(n) for n in range(first, min(count, first + EVERY))))
        await trial.sane()
        trial.look()
        done = min(count, first + EVERY)
        print(f"{done} of {count}: {dict(trial.statuses)}", file=sys.stderr, flush=True)
        if trial.gateway.child.poll() is not None:
            trial.wrong.append((-1, "the gateway ended"))
            return


def fuzz(kind: str, seed: int, count: int) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """(figures, what was wrong: the input's number and how)."""

    def answer(number: int, streamed: bool) -> bytes:
        return broken_answer(random.Random(f"{seed} answer {number} {streamed}"), streamed)

    with (
        tempfile.TemporaryDirectory(prefix="deployer-fuzz-") as folder,
        serving(Engine(answer)) as engine,
    ):
        names = ["chat", *(f"chat{number}" for number in range(ROUTES))]
        told = table([upstream(name, engine.url, slots=64) for name in names], max_waiting=1000)
        told["routes"] = [{"model": name, "to": {name: 1.0}} for name in names]
        with running_gateway(Path(folder), told) as gateway:
            trial = Trial(gateway)
            asyncio.run(run(trial, kind, seed, count, engine))
            return trial.figures(count), trial.wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=("clients", "engines"))
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file that gets the figures")
    given = parser.parse_args()
    figures, wrong = fuzz(given.kind, given.seed, given.count)
    for number, how in wrong[:20]:
        print(f"input {number}: {how}", file=sys.stderr)
    print(json.dumps(figures, indent=1))
    if given.out:
        write(given.out, f"http_from_{given.kind}", {"seed": given.seed, **figures})
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
