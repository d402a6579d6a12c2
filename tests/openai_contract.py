"""What every server of ours must do for the official `openai` client, whichever engine runs.

One function, called wherever a test has a server running: engines directly, and the gateway.
Greedy and short, since some servers of the tests compute a few tokens a second.
"""

from __future__ import annotations

import asyncio

import httpx2
import openai
import pytest

TIMEOUT = 120.0
TOKENS = 6
PROMPT = "The capital of France is"
CHAT = [{"role": "user", "content": "What is the capital city of France? Answer in one word."}]
NO_KEY = "none"
"""The client wants some key, even for a server that asks for none."""


def client_of(base_url: str, api_key: str | None = None, timeout: float = TIMEOUT) -> openai.OpenAI:
    """A client that asks once: a test sees each error, not what came of a second attempt."""
    return openai.OpenAI(
        base_url=base_url, api_key=api_key or NO_KEY, max_retries=0, timeout=timeout,
        http_client=httpx2.Client(trust_env=False, timeout=timeout),
    )  # fmt: skip


def async_client_of(
    base_url: str, api_key: str | None = None, timeout: float = TIMEOUT
) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=base_url, api_key=api_key or NO_KEY, max_retries=0, timeout=timeout,
        http_client=httpx2.AsyncClient(trust_env=False, timeout=timeout),
    )  # fmt: skip


def check_openai_contract(
    base_url: str,
    model: str,
    api_key: str | None = None,
    *,
    logprobs: bool = True,
    usage_apart: bool = True,
) -> None:
    """Fails where a server breaks the contract; `base_url` ends with /v1.

    `logprobs` false: an engine that has none must say so with 400, not leave them out.
    `usage_apart` false: a stream's usage comes with its last choice, not in a chunk of its own.
    """
    with client_of(base_url, api_key) as client:
        assert model in [each.id for each in client.models.list()]
        text = _answers(client, model)
        _streams(client, model, text, usage_apart)
        _stops(client, model)
        _logprobs(client, model, logprobs)
        _refuses(client, model)
    asyncio.run(_streams_async(base_url, model, api_key, text))
    if api_key:
        with client_of(base_url, "wrong") as client, pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model=model, messages=CHAT, max_tokens=1)


def _answers(client: openai.OpenAI, model: str) -> str:
    """The greedy answer, with the length that was asked for."""
    answer = client.chat.completions.create(
        model=model, messages=CHAT, max_tokens=TOKENS, temperature=0
    )
    (choice,) = answer.choices
    assert answer.object == "chat.completion"
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= TOKENS
    assert answer.usage.total_tokens == (
        answer.usage.prompt_tokens + answer.usage.completion_tokens
    )
    return choice.message.content


def _streams(client: openai.OpenAI, model: str, text: str, usage_apart: bool) -> None:
    """The same text in pieces; the usage comes last, and only where it was asked for."""
    chunks = list(
        client.chat.completions.create(
            model=model, messages=CHAT, max_tokens=TOKENS, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == text
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert [end for end in ends if end] in (["stop"], ["length"])
    assert (chunks[-1].choices == []) is usage_apart
    assert chunks[-1].usage is not None
    tokens = chunks[-1].usage.completion_tokens
    assert 0 < tokens <= TOKENS
    assert sum(bool(piece) for piece in pieces) > 1 or tokens <= 2, "it came in one piece"


async def _streams_async(base_url: str, model: str, api_key: str | None, text: str) -> None:
    async with async_client_of(base_url, api_key) as client:
        stream = await client.chat.completions.create(
            model=model, messages=CHAT, max_tokens=TOKENS, temperature=0, stream=True
        )
        pieces = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
    assert "".join(pieces) == text


def _stops(client: openai.OpenAI, model: str) -> None:
    """`max_tokens` ends a completion, and a stop word ends it before that word."""

    def ask(stop: str | None) -> openai.types.Completion:
        return client.completions.create(
            model=model, prompt=PROMPT, max_tokens=TOKENS, temperature=0, stop=stop
        )

    whole = ask(None)
    text = whole.choices[0].text
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= TOKENS
    stop = text.split()[-1]
    until = ask(stop).choices[0]
    assert until.text == text[: text.index(stop)]
    assert until.finish_reason == "stop"


def _logprobs(client: openai.OpenAI, model: str, supported: bool) -> None:
    def ask() -> openai.types.chat.ChatCompletion:
        return client.chat.completions.create(
            model=model, messages=CHAT, max_tokens=2, temperature=0, logprobs=True, top_logprobs=2
        )

    if not supported:
        with pytest.raises(openai.BadRequestError):
            ask()
        return
    found = ask().choices[0].logprobs
    assert found is not None
    assert found.content
    for token in found.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 2


def _refuses(client: openai.OpenAI, model: str) -> None:
    """A prompt beyond the context is an error of the client's, never a shorter prompt."""
    long = [{"role": "user", "content": "word " * 40_000}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=long, max_tokens=1)
    assert caught.value.message
