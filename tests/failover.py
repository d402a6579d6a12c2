"""Streams through a router while a server behind it dies: what was asked, and what became of it."""

from __future__ import annotations

import json
import secrets
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx


@dataclass
class Asked:
    """One streamed request; times are those of `time.monotonic`."""

    started: float
    ended: float = 0.0
    tokens: int = 0
    problem: str = "it did not end"

    @property
    def answered(self) -> bool:
        return not self.problem


@dataclass
class Load:
    """Users who ask one request after another until `end` is called."""

    url: str
    model: str
    users: int
    tokens: int
    asked: list[Asked] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self.pool = ThreadPoolExecutor(self.users)
        self.futures: list[Future[None]] = [self.pool.submit(self._user) for _ in range(self.users)]
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.pool.shutdown()

    def end(self) -> None:
        """Let running requests end, and raise what went wrong in a user."""
        self.stop.set()
        for future in self.futures:
            future.result()

    def _user(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as client:
            while not self.stop.is_set():
                request = Asked(time.monotonic())
                self.asked.append(request)
                self._stream(client, request)
                request.ended = time.monotonic()
                if request.problem:
                    self.stop.wait(0.1)

    def _stream(self, client: httpx.Client, request: Asked) -> None:
        body = {
            "model": self.model, "stream": True, "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": f"[{secrets.token_hex(4)}] Tell a story."}],
            "max_tokens": self.tokens, "ignore_eos": True,
        }  # fmt: skip
        try:
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    request.problem = f"status {response.status_code}"
                    return
                for line in response.iter_lines():
                    if line == "data: [DONE]":
                        request.problem = ""
                    elif line.startswith("data: {"):
                        usage = json.loads(line[6:]).get("usage") or {}
                        request.tokens = usage.get("completion_tokens", request.tokens)
        except httpx.HTTPError as error:
            request.problem = repr(error)
        if not request.problem and request.tokens != self.tokens:
            request.problem = f"{request.tokens} of {self.tokens} tokens"
