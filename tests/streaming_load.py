"""Users who stream chats through a gateway or a router, and exactly what became of each request.

A request that does not end well must say so: the end mark is missing, and an error came in its
place. What ends without either, or with fewer tokens than were asked for, is a silent loss.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import httpx

End = Literal["under way", "done", "refused", "error", "broken", "truncated", "short"]
"""`refused`: another status than 200. `error`: an error object in the stream and no end mark.
`broken`: the connection broke, which HTTP makes plain. `truncated`: the body ended whole, but with
neither end mark nor error. `short`: an end mark, but fewer tokens than asked for."""
SILENT: frozenset[End] = frozenset({"truncated", "short"})


@dataclass
class Asked:
    """One streamed request; times are those of `time.monotonic`. `told` is an error's text."""

    started: float
    tokens_wanted: int
    ended: float = 0.0
    first: float | None = None
    server: str = ""
    status: int = 0
    tokens: int = 0
    end: End = "under way"
    told: str = ""

    @property
    def good(self) -> bool:
        return self.end == "done"

    def under_way(self, moment: float, slack: float = 0.0) -> bool:
        return self.started - slack <= moment <= self.ended + slack


@dataclass
class Load:
    """Users who ask one request after another until `end`, or until `most` were asked in all.

    `pause` is what each user waits between two requests, in seconds.
    """

    url: str
    model: str
    users: int
    tokens: int
    most: int | None = None
    pause: float = 0.0
    key: str = ""
    asked: list[Asked] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Load:
        self.pool = ThreadPoolExecutor(self.users)
        self.futures: list[Future[None]] = [self.pool.submit(self._user) for _ in range(self.users)]
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.pool.shutdown()

    @property
    def running(self) -> bool:
        return not all(future.done() for future in self.futures)

    def end(self) -> None:
        """Let running requests end, and raise what went wrong in a user."""
        self.stop.set()
        self.join()

    def join(self) -> None:
        """Wait until the users have asked all they shall."""
        for future in self.futures:
            future.result()

    def ends(self) -> dict[str, int]:
        """How often a request ended in which way."""
        counted: dict[str, int] = {}
        for request in self.asked:
            counted[request.end] = counted.get(request.end, 0) + 1
        return dict(sorted(counted.items()))

    def _user(self) -> None:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Timeout(120.0)
        with httpx.Client(
            base_url=self.url, timeout=limits, trust_env=False, headers=headers
        ) as client:
            while not self.stop.is_set() and (request := self._next()) is not None:
                stream(client, self.model, request)
                request.ended = time.monotonic()
                self.stop.wait(self.pause if request.good else max(self.pause, 0.1))

    def _next(self) -> Asked | None:
        with self.lock:
            if self.most is not None and len(self.asked) >= self.most:
                return None
            self.asked.append(Asked(time.monotonic(), self.tokens))
            return self.asked[-1]


def stream(client: httpx.Client, model: str, request: Asked) -> None:
    """Ask for a chat, and note in `request` what comes of it."""
    body = {
        "model": model, "stream": True, "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": f"[{secrets.token_hex(4)}] Tell a story."}],
        "max_tokens": request.tokens_wanted, "ignore_eos": True,
    }  # fmt: skip
    try:
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            request.status = response.status_code
            request.server = response.headers.get("x-deployer-server", "")
            if response.status_code != 200:
                request.end, request.told = "refused", response.read().decode()[:300]
                return
            _read(response, request)
    except httpx.HTTPError as error:
        request.end, request.told = "broken", repr(error)


def _read(response: httpx.Response, request: Asked) -> None:
    done = False
    for line in response.iter_lines():
        if line == "data: [DONE]":
            done = True
        elif line.startswith("data: "):
            _take(json.loads(line[6:]), request)
    if done and request.told:
        raise AssertionError(f"an error and an end mark in one stream: {request.told}")
    if request.told:
        request.end = "error"
    elif not done:
        request.end = "truncated"
    else:
        request.end = "done" if request.tokens == request.tokens_wanted else "short"


def _take(event: dict[str, object], request: Asked) -> None:
    if event.get("error"):
        request.told = json.dumps(event["error"])[:300]
    usage = event.get("usage")
    if isinstance(usage, dict):
        request.tokens = usage.get("completion_tokens", request.tokens)
    if event.get("choices") and request.first is None:
        request.first = time.monotonic()


def percentile(values: list[float], share: float) -> float | None:
    """The value below which `share` of them lie, None where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
