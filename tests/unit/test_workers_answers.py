"""`workers/_answers.py`: the ends of streams, and of texts that a stop text ends."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deployer.toolchains.worker import WORKERS


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(WORKERS))
    return importlib.import_module("_answers")


def streamed(worker: Any, *chunks: str) -> list[str]:
    async def source() -> AsyncIterator[str]:
        for chunk in chunks:
            yield chunk

    async def all_of_it() -> list[str]:
        return [chunk async for chunk in worker.to_the_end(source())]

    return asyncio.run(all_of_it())


def test_a_stream_ends_with_done(worker: Any) -> None:
    chunk = 'data: {"choices": []}\n\n'
    assert streamed(worker, chunk, chunk) == [chunk, chunk, "data: [DONE]\n\n"]


def test_an_error_is_json_and_nothing_follows_it(worker: Any) -> None:
    """The server writes the words of an exception between quotes as they are."""
    good = 'data: {"choices": []}\n\n'
    made = streamed(worker, good, good + 'data: {"error": "no "such" thing\nhere"}\n\n', good)
    assert made[0] == good
    head, _, last = made[1].rpartition("data: ")
    assert head == good
    assert json.loads(last) == {"error": {"message": 'no "such" thing\nhere'}}
    assert len(made) == 2


@pytest.mark.parametrize(
    ("text", "stops", "left", "reason"),
    [
        ("one\ndef two", ["\nclass", "\ndef"], "one", "stop"),
        ("one\ndef two\nclass", ["\nclass", "\ndef"], "one", "stop"),
        ("one, two", ", ", "one", "stop"),
        ("one two", ["three"], "one two", "length"),
    ],
)
def test_a_stop_text_is_not_part_of_the_answer(
    worker: Any, text: str, stops: str | list[str], left: str, reason: str
) -> None:
    plain = {"choices": [{"text": text, "finish_reason": "length"}]}
    chat = {"choices": [{"message": {"content": text}, "finish_reason": "length"}]}
    for answer in (plain, chat):
        choice = worker.without_stop(answer, stops)["choices"][0]
        assert choice["finish_reason"] == reason
        assert (choice.get("text") or choice["message"]["content"]) == left


def test_an_answer_without_text_stays_as_it_is(worker: Any) -> None:
    answer = {"choices": [{"message": {"role": "assistant"}, "finish_reason": "tool_calls"}]}
    assert worker.without_stop(answer, ["x"])["choices"][0]["finish_reason"] == "tool_calls"
