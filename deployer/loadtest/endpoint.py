"""What a load test asks an endpoint outside the load itself: by httpx, one request at a time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import httpx

from deployer.errors import LoadTestError, UsageError
from deployer.recipe.addresses import on_loopback

READY_TIMEOUT = 120.0
"""Seconds for one short answer; the first one may wait for a cold engine."""

_COUNTERS = ("llamacpp:tokens_predicted_total", "vllm:generation_tokens_total")
_TOKENIZERS = (
    ("/tokenize", "content"),  # llama.cpp
    ("/tokenize", "prompt"),  # vLLM
    ("/extras/tokenize", "input"),  # llama-cpp-python
)


@dataclass
class Endpoint:
    """An OpenAI-compatible server at `url`; close it when done (it is a context manager)."""

    url: str
    http: httpx.Client

    @classmethod
    def at(cls, url: str, api_key: str | None = None) -> Endpoint:
        """Name an endpoint, for example http://127.0.0.1:8080; nothing is sent yet."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"{url!r} is not an endpoint", "Write it like http://127.0.0.1:8080, without /v1."
            )
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        base = url.rstrip("/").removesuffix("/v1")
        # trust_env off: the load goes to the server directly, so these requests must too.
        return cls(base, httpx.Client(headers=headers, timeout=READY_TIMEOUT, trust_env=False))

    @property
    def is_local(self) -> bool:
        """Whether the address means this machine, wherever it is used."""
        return on_loopback(urlsplit(self.url).hostname or "")

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def model(self) -> str:
        """Name of the first model the server lists; LoadTestError where nothing answers."""
        listed = self._ask("GET", "/v1/models")
        try:
            return str(listed["data"][0]["id"])
        except (LookupError, TypeError) as error:
            raise LoadTestError(
                f"{self.url}/v1/models lists no model", "Is this an OpenAI-compatible server?"
            ) from error

    def prompt_tokens(self, model: str, prompt: str) -> int | None:
        """Prompt tokens of one real request (two tokens of output); None where it gives no usage.

        LoadTestError with the server's words when it refuses or answers with no choice.
        """
        messages = [{"role": "user", "content": prompt}]
        body = {"model": model, "messages": messages, "max_tokens": 2, "stream": False}
        answer = self._ask("POST", "/v1/chat/completions", body)
        if not answer.get("choices"):
            raise LoadTestError(f"{self.url} gave no answer to a chat request", "See its log.")
        tokens = (answer.get("usage") or {}).get("prompt_tokens")
        return int(tokens) if tokens else None

    def generated_tokens(self) -> int | None:
        """The server's own count of generated tokens since its start; None where it keeps none.

        Behind vllm-router it is the sum over its servers: the router's /metrics is that of one.
        """
        total = 0
        for url in self._servers:
            count = _counter(self._text(f"{url}/metrics"))
            if count is None:
                return None
            total += count
        return total

    @cached_property
    def _servers(self) -> tuple[str, ...]:
        """Who answers here: the servers that a router lists, else the endpoint itself.

        Asked once, so that counts before and after the load are of the same servers.
        """
        try:
            listed = json.loads(self._text(f"{self.url}/list_workers"))["urls"]
        except (ValueError, LookupError, TypeError):
            listed = []
        good = isinstance(listed, list) and all(isinstance(url, str) for url in listed)
        return tuple(listed) if listed and good else (self.url,)

    def _text(self, url: str) -> str:
        """What a server says at a path of its own; "" where it says nothing."""
        try:
            response = self.http.get(url, timeout=5.0)
        except (httpx.HTTPError, httpx.InvalidURL):
            return ""
        return response.text if response.status_code == 200 else ""

    def settled_tokens(self, at_least: int, wait: float = 2.0) -> int | None:
        """`generated_tokens`, read again for `wait` seconds until it reaches `at_least`."""
        deadline = time.monotonic() + wait
        while True:
            count = self.generated_tokens()
            if count is None or count >= at_least or time.monotonic() > deadline:
                return count
            time.sleep(0.1)

    def count_tokens(self, text: str) -> int | None:
        """Tokens of a text by the server's tokenizer; None where it offers none."""
        for path, name in _TOKENIZERS:
            try:
                response = self.http.post(self.url + path, json={name: text})
                tokens = response.json()["tokens"] if response.status_code == 200 else None
            except (httpx.HTTPError, ValueError, LookupError, TypeError):
                continue
            if isinstance(tokens, list):
                return len(tokens)
        return None

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One JSON request; every failure becomes a LoadTestError that says what to do."""
        try:
            response = self.http.request(method, self.url + path, json=body)
        except httpx.ConnectError as error:
            raise LoadTestError(
                f"nothing listens at {self.url}",
                "Start a server with `deployer serve`, or name one with --endpoint.",
            ) from error
        except httpx.HTTPError as error:
            raise LoadTestError(
                f"{self.url} did not answer: {error or type(error).__name__}",
                "See the server's log: `deployer logs`.",
            ) from error
        if response.status_code in (401, 403):
            raise LoadTestError(
                f"{self.url} wants an API key", "Put it into the environment as DEPLOYER_API_KEY."
            )
        if response.status_code != 200:
            raise LoadTestError(
                f"{self.url}{path} answered {response.status_code}: {_reason(response)}",
                "prompt_tokens and output_tokens together must fit the server's context."
                if response.status_code == 400
                else "See the server's log: `deployer logs`.",
            )
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise LoadTestError(
                f"{self.url}{path} did not answer with a JSON object",
                "Is this an OpenAI-compatible server?",
            )
        return answer


def words_for(tokens: int, measured: Mapping[int, int]) -> int:
    """How many words make a prompt of about `tokens` tokens, at least 1.

    `measured` maps words to prompt tokens; the two ends of it give tokens a word and the fixed
    part (instruction and chat template). With less than two points, two tokens a word.
    """
    if len(measured) < 2:
        return max(1, (tokens - 30) // 2)
    (few, low), (many, high) = min(measured.items()), max(measured.items())
    each = max((high - low) / (many - few), 0.1)
    return max(1, round((tokens - low) / each + few))


def plain_words_for(tokens: int, measured: Mapping[int, int]) -> int:
    """How many words of bare text, without instruction and template, are about `tokens` tokens."""
    if len(measured) < 2:
        return max(1, tokens // 2)
    (few, low), (many, high) = min(measured.items()), max(measured.items())
    return max(1, round(tokens / max((high - low) / (many - few), 0.1)))


def _counter(text: str) -> int | None:
    for name in _COUNTERS:
        found = re.findall(rf"(?m)^{re.escape(name)}(?:\{{[^}}]*\}})?\s+(\S+)", text)
        if found:
            return round(sum(float(value) for value in found))
    return None


def _reason(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, LookupError, TypeError):
        return " ".join(response.text.split())[:300] or "no reason given"
