"""Makes the prompt of a planned request, sends it, and records what became of it, once."""

from __future__ import annotations

import time
from typing import Any

import gevent
from answer import Answer
from client import CHAT, ChatClient
from locust.env import Environment
from plan import Row
from prompts import make, nonce, of_blocks, of_pool, prefixed
from recorder import Recorder
from settings import Settings

Messages = list[dict[str, str]]


class Requester:
    """What the users of one process share: the client, the model's name, the recorder."""

    def __init__(self, settings: Settings, recorder: Recorder, key: str | None) -> None:
        self.settings, self.recorder, self.key = settings, recorder, key
        self.model = settings.model
        self.client: ChatClient | None = None
        mark = nonce(settings.run_id, settings.seed)
        self.system: Messages = []
        if settings.prefix_words:
            text = prefixed(settings.prefix_words, mark)
            self.system = [{"role": "system", "content": text}]

    def connect_to(self, host: str | None) -> None:
        """Name the server, which Locust's web page may have changed."""
        if self.client is None:
            self.client = ChatClient(host or self.settings.endpoint, self.settings, self.key)
            self.model = self.model or self.client.model()

    def prompt(self, row: Row, index: int, identity: str) -> str:
        """The user's message of request `index` of the run."""
        settings = self.settings
        if row.blocks:  # shared beginnings are what is replayed, so the run has one nonce
            mark = nonce(settings.run_id, settings.seed)
            return of_blocks(row.blocks, row.block_words, row.words, mark)
        if settings.pool:
            return of_pool(index % settings.pool, row.words, row.text, settings.run_id)
        mark = nonce(settings.run_id, settings.seed, identity)
        if row.text:
            return f"[{mark}] {row.text}"
        return make(row.words, f"{settings.seed}/{identity}", mark)

    def ask(
        self, environment: Environment, row: Row, answer: Answer, history: Messages, seed: int
    ) -> None:
        """Send one request and record it; `answer` has its identity, phase, prompt and due time."""
        assert self.client is not None
        messages = [*self.system, *history, {"role": "user", "content": answer.prompt}]
        answer.max_tokens = row.tokens
        request = self.client.request(self.model, messages, row.tokens, seed)
        try:
            self.client.exchange(request, answer)
        except gevent.GreenletExit:
            answer.fail("cutoff", "the test ended first")
            raise
        finally:
            self._record(environment, row, answer)

    def _record(self, environment: Environment, row: Row, answer: Answer) -> None:
        least = row.tokens if self.settings.ignore_eos else 0
        sample = answer.sample(time.monotonic(), least)
        self.recorder.keep(sample)
        failure: Any = None if sample.ok else RuntimeError(f"{sample.error}: {sample.detail}")
        environment.events.request.fire(
            request_type="POST",
            name=CHAT,
            response_time=((sample.last or sample.closed) - sample.sent) * 1000,
            response_length=len(answer.text),
            exception=failure,
            context={},
            response=None,
        )
