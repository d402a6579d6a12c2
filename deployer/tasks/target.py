"""The model that is asked: an OpenAI-compatible endpoint, one greedy request at a time.

One at a time, because an engine that decodes several requests together rounds differently with each
set of neighbours, and the same questions should give the same answers twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from deployer.errors import ServerError, UsageError

ANSWER_TIMEOUT = 600.0
"""Seconds for one answer; a slow machine may need minutes for 512 tokens."""


@dataclass
class Target:
    """A served model; close it when done (it is a context manager).

    `url` is the server's, without /v1. `tokenizer` is the folder of its tokenizer, where it is
    known: tasks that score given answers need one. `extra` goes into every request.
    """

    url: str
    model: str
    http: httpx.Client
    api_key: str | None = None
    tokenizer: Path | None = None
    extra: Mapping[str, Any] | None = None

    @classmethod
    def at(
        cls,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        tokenizer: Path | None = None,
    ) -> Target:
        """Reach a server and learn what it serves; `model` defaults to the first it lists.

        Raises UsageError for what is no URL, ServerError where nothing sensible answers.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"{url!r} is not an endpoint", "Write it like http://127.0.0.1:8080, without /v1."
            )
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        http = httpx.Client(headers=headers, timeout=ANSWER_TIMEOUT, trust_env=False)
        target = cls(url.rstrip("/").removesuffix("/v1"), "", http, api_key, tokenizer)
        try:
            return target._introduced(model)
        except BaseException:
            http.close()
            raise

    def _introduced(self, model: str | None) -> Target:
        listed = self._ask("GET", "/v1/models", None)
        try:
            first = listed["data"][0]
            self.model = model or str(first["id"])
        except (LookupError, TypeError) as error:
            raise ServerError(
                f"{self.url}/v1/models lists no model", "Is this an OpenAI-compatible server?"
            ) from error
        # llama.cpp reuses the common part of the last prompt, computed in other batches: its
        # answers would depend on what was asked before.
        self.extra = {"cache_prompt": False} if first.get("owned_by") == "llamacpp" else {}
        return self

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def complete(self, prompt: str, max_tokens: int, stop: Sequence[str]) -> str:
        """Continue a text greedily, up to a stop string, which is left out."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "stop": list(stop)}
        answer = self._post("/v1/completions", body)
        return str(self._choice(answer).get("text") or "")

    def chat(self, question: str, max_tokens: int) -> str:
        """Answer one message greedily."""
        messages = [{"role": "user", "content": question}]
        answer = self._post(
            "/v1/chat/completions", {"messages": messages, "max_tokens": max_tokens}
        )
        message = self._choice(answer).get("message") or {}
        return str(message.get("content") or "")

    def scores_prompts(self) -> bool:
        """Whether it gives log-probabilities of the prompt's own tokens (`echo` and `logprobs`)."""
        body = {"prompt": "one two three four", "max_tokens": 1, "echo": True, "logprobs": 1}
        try:
            choice = self._choice(self._post("/v1/completions", body))
        except ServerError:
            return False  # some servers refuse the question
        given = (choice.get("logprobs") or {}).get("token_logprobs") or []
        return len(given) > 2 and "one two three" in str(choice.get("text"))

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        settings = {"model": self.model, "temperature": 0, "seed": 0, "stream": False}
        return self._ask("POST", path, {**settings, **(self.extra or {}), **body})

    def _choice(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ServerError(
                f"{self.url} gave no answer", "See the server's log: `deployer logs`."
            )
        return choices[0]

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """One JSON request; every failure becomes a ServerError that says what to do."""
        try:
            response = self.http.request(method, self.url + path, json=body)
            answer = response.json() if response.status_code == 200 else None
        except httpx.ConnectError as error:
            raise ServerError(
                f"nothing listens at {self.url}", "Start a server, or name one with --endpoint."
            ) from error
        except (httpx.HTTPError, ValueError) as error:
            raise ServerError(
                f"{self.url}{path} did not answer: {error or type(error).__name__}",
                "Is this an OpenAI-compatible server? Its log may say more.",
            ) from error
        if response.status_code in (401, 403):
            raise ServerError(f"{self.url} wants an API key", "Name its file: --api-key-file.")
        if not isinstance(answer, dict):
            raise ServerError(
                f"{self.url}{path} answered {response.status_code}: {response.text[:300]}",
                "A 400 may mean that the server's context is too small for the task.",
            )
        return answer
