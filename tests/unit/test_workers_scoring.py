"""What is scored: ids and BOS, the same in every engine."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from deployer.toolchains.worker import WORKERS


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as a worker imports it, and forgotten afterwards."""
    monkeypatch.syspath_prepend(str(WORKERS))
    for name in ("_scoring", "_protocol"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("_scoring")
    assert Path(module.__file__).parent == WORKERS
    yield module
    for name in ("_scoring", "_protocol"):
        sys.modules.pop(name, None)


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_a_model_with_bos_scores_every_token(scoring: Any) -> None:
    asked = {"text": "abcdef", "tokens": 4}
    assert scoring.chosen_ids(asked, encode, 1) == ([1], encode("abcd"))


def test_without_bos_the_first_token_is_context_and_one_more_is_taken(scoring: Any) -> None:
    asked = {"text": "abcdef", "tokens": 4}
    assert scoring.chosen_ids(asked, encode, None) == ([], encode("abcde"))
    assert scoring.chosen_ids({**asked, "bos": False}, encode, 1) == ([], encode("abcde"))


def test_ids_are_taken_as_they_are(scoring: Any) -> None:
    assert scoring.chosen_ids({"ids": [7, 8, 9], "tokens": 2}, encode, 1) == ([1], [7, 8])


def test_a_short_text_gives_what_it_has(scoring: Any) -> None:
    assert scoring.chosen_ids({"text": "ab", "tokens": 9}, encode, 1) == ([1], encode("ab"))


def test_a_text_of_long_tokens_is_read_on(scoring: Any) -> None:
    def by_hundred(text: str) -> list[int]:
        return [0] * (len(text) // 100)

    _, ids = scoring.chosen_ids({"text": "a" * 1000, "tokens": 5}, by_hundred, 1)
    assert len(ids) == 5


@pytest.mark.parametrize(
    ("asked", "begin", "words"),
    [
        ({"text": "", "tokens": 4}, 1, "has no tokens"),
        ({"text": "a", "tokens": 4}, None, "has no tokens"),
        ({"text": "abc", "tokens": 2, "bos": True}, None, "has no BOS token"),
    ],
)
def test_what_cannot_be_scored(scoring: Any, asked: Any, begin: int | None, words: str) -> None:
    with pytest.raises(Exception, match=words) as caught:
        scoring.chosen_ids(asked, encode, begin)
    assert type(caught.value).__name__ == "WorkerError"


def test_a_report_has_the_perplexity_of_its_losses(scoring: Any) -> None:
    report = scoring.report([1], [5, 6], [math.log(2), math.log(8)], [5, 9])
    assert report["perplexity"] == pytest.approx(4.0)
    assert (report["tokens"], report["bos"], report["top1"]) == (2, True, [5, 9])
    assert len(report["ids_sha256"]) == 64
    assert scoring.report([], [5], [1e6], [5])["perplexity"] == math.exp(700.0)
