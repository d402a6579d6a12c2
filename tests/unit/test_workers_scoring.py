"""What is scored: ids, BOS and windows, the same in every engine; and what logits say."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest

from deployer.toolchains.worker import WORKERS

NAMES = ("_scoring", "_distributions", "_protocol")
VOCABULARY, WIDTH = 7, 4


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, imported as a worker imports it, and forgotten afterwards."""
    monkeypatch.syspath_prepend(str(WORKERS))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("_scoring")
    assert Path(str(module.__file__)).parent == WORKERS
    yield module
    for name in NAMES:
        sys.modules.pop(name, None)


def encode(text: str) -> list[int]:
    return [ord(character) - ord("a") for character in text]


def windows(scoring: Any, begin: int | None, **asked: Any) -> list[list[int]]:
    return list(scoring.Windows({"text": "abcdefg", "window": 3, **asked}, encode, begin))


def test_with_bos_a_window_is_bos_and_all_but_one_of_its_tokens(scoring: Any) -> None:
    assert windows(scoring, 9) == [[9, 0, 1], [9, 2, 3], [9, 4, 5]]
    assert windows(scoring, 9, windows=2) == [[9, 0, 1], [9, 2, 3]]


def test_without_bos_a_window_is_tokens_alone(scoring: Any) -> None:
    assert windows(scoring, None) == [[0, 1, 2], [3, 4, 5]]
    assert windows(scoring, 9, bos=False) == [[0, 1, 2], [3, 4, 5]]


def test_either_way_all_but_one_token_of_a_window_are_scored(scoring: Any) -> None:
    for begin, count in ((9, 3), (None, 2)):
        made = scoring.Windows({"text": "abcdefg", "window": 3}, encode, begin)
        assert (made.count, made.tokens) == (count, 2 * count)


def test_ids_are_taken_as_they_are(scoring: Any) -> None:
    assert windows(scoring, 9, ids=[7, 8, 5], text=None) == [[9, 7, 8]]


def test_a_text_of_long_tokens_is_read_on(scoring: Any) -> None:
    def by_hundred(text: str) -> list[int]:
        return [0] * (len(text) // 100)

    asked = {"text": "a" * 1000, "window": 3, "windows": 2}
    assert scoring.Windows(asked, by_hundred, 1).count == 2


@pytest.mark.parametrize(
    ("asked", "begin", "words"),
    [
        ({"text": ""}, 1, "has 0 tokens, enough for 0 windows of 3; 1 are to be scored"),
        ({"text": "ab"}, None, "enough for 0 windows of 3"),
        ({"windows": 4}, 1, "has 7 tokens, enough for 3 windows of 3; 4 are to be scored"),
        ({"bos": True}, None, "has no BOS token"),
    ],
)
def test_what_cannot_be_scored(
    scoring: Any, asked: dict[str, Any], begin: int | None, words: str
) -> None:
    with pytest.raises(Exception, match=words) as caught:
        windows(scoring, begin, **asked)
    assert type(caught.value).__name__ == "WorkerError"


class Model:
    """Logits and hidden states from a table of random numbers, two rows at a time."""

    def __init__(self, seed: int, hidden: bool = True) -> None:
        draw = numpy.random.default_rng(seed)
        self.table = draw.normal(size=(10, VOCABULARY)).astype(numpy.float32) * 3
        self.states = draw.normal(size=(10, WIDTH)).astype(numpy.float32) if hidden else None

    def logits(self, ids: list[int]) -> Iterator[tuple[Any, Any]]:
        for start in range(0, len(ids), 2):
            rows = ids[start : start + 2]
            yield self.table[rows], None if self.states is None else self.states[rows]

    def distribution(self, token: int) -> list[float]:
        """softmax of a row, in Python's own floats."""
        row = [math.exp(float(value)) for value in self.table[token]]
        return [value / sum(row) for value in row]


TEXT = "abcdefgfedcba"
REQUEST = {"text": TEXT, "window": 5}


def scored(scoring: Any, model: Model, begin: int | None = 0, **asked: Any) -> dict[str, Any]:
    request = {**REQUEST, **asked}
    found = scoring.score(scoring.Windows(request, encode, begin), model.logits, request)
    assert isinstance(found, dict)
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def transitions(scoring: Any) -> list[tuple[int, int]]:
    """(token before, token) of every scored position."""
    made = scoring.Windows(REQUEST, encode, 0)
    return [pair for ids in made for pair in itertools.pairwise(ids)]


def test_a_loss_is_the_surprise_at_the_true_token(scoring: Any) -> None:
    model = Model(1)
    found = scored(scoring, model)
    pairs = transitions(scoring)
    expected = [-math.log(model.distribution(before)[after]) for before, after in pairs]
    assert found["nll"] == pytest.approx(expected, rel=1e-5)
    assert found["top1"] == [int(model.table[before].argmax()) for before, _ in pairs]
    assert found["perplexity"] == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-5)
    assert (found["tokens"], found["windows"], found["bos"]) == (12, 3, True)
    assert found["kld"] is found["cosine"] is None


def test_divergence_from_a_kept_reference(scoring: Any, tmp_path: Path) -> None:
    base, other = Model(1), Model(2)
    scored(scoring, base, keep=str(tmp_path))
    found = scored(scoring, other, reference=str(tmp_path))
    expected = [
        sum(p * math.log(p / q) for p, q in
            zip(base.distribution(before), other.distribution(before), strict=True))
        for before, _ in transitions(scoring)
    ]  # fmt: skip
    assert found["kld"] == pytest.approx(expected, abs=5e-3)
    assert base.states is not None
    assert other.states is not None
    first = base.states[0] @ other.states[0]
    lengths = float(numpy.linalg.norm(base.states[0]) * numpy.linalg.norm(other.states[0]))
    assert found["cosine"][0] == pytest.approx(float(first) / lengths, abs=1e-3)


def test_a_model_does_not_differ_from_itself(scoring: Any, tmp_path: Path) -> None:
    scored(scoring, Model(1), keep=str(tmp_path))
    found = scored(scoring, Model(1), reference=str(tmp_path))
    assert max(found["kld"]) < 1e-5
    assert min(found["kld"]) >= 0.0
    assert min(found["cosine"]) > 0.9999


def test_an_engine_without_hidden_states_has_no_cosine(scoring: Any, tmp_path: Path) -> None:
    scored(scoring, Model(1, hidden=False), keep=str(tmp_path))
    assert not (tmp_path / "hidden.f16").exists()
    assert scored(scoring, Model(2), reference=str(tmp_path))["cosine"] is None
    scored(scoring, Model(1), keep=str(tmp_path))
    assert scored(scoring, Model(2, hidden=False), reference=str(tmp_path))["cosine"] is None


def test_other_ids_cannot_be_compared(scoring: Any, tmp_path: Path) -> None:
    scored(scoring, Model(1), keep=str(tmp_path))
    with pytest.raises(Exception, match="tokenizes the evaluation text differently"):
        scored(scoring, Model(1), begin=None, reference=str(tmp_path))


def test_another_vocabulary_cannot_be_compared(scoring: Any, tmp_path: Path) -> None:
    scored(scoring, Model(1), keep=str(tmp_path))
    other = Model(2)
    other.table = numpy.concatenate([other.table, other.table], axis=1)
    with pytest.raises(Exception, match="14 logits a token, the 16-bit model 7"):
        scored(scoring, other, reference=str(tmp_path))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_garbage_is_no_number(scoring: Any, value: float) -> None:
    model = Model(1)
    model.table[2, 3] = value
    with pytest.raises(Exception, match="the loss at token 3 is not a finite number"):
        scored(scoring, model)


def test_what_is_kept_has_a_limit(
    scoring: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributions = sys.modules["_distributions"]
    monkeypatch.setattr(distributions, "KEPT_BYTES", 5 * VOCABULARY * 2)
    scored(scoring, Model(1), keep=str(tmp_path))
    found = scored(scoring, Model(2), reference=str(tmp_path))
    assert (len(found["nll"]), len(found["kld"]), len(found["cosine"])) == (12, 5, 5)


# Memory


def test_what_the_process_held_at_most_is_reported(scoring: Any) -> None:
    found = scored(scoring, Model(1))
    assert found["peak_bytes"] >= psutil.Process().memory_info().rss // 2 > 0


def test_a_peak_stays_when_the_memory_is_given_back(scoring: Any) -> None:
    protocol = importlib.import_module("_protocol")
    before = protocol.peak_memory()
    size = 64 << 20
    taken = bytearray(before + size - psutil.Process().memory_info().rss)
    taken[::4096] = b"x" * len(taken[::4096])
    del taken
    assert protocol.peak_memory() >= before + size // 2


def test_where_nothing_tells_it_is_unknown(scoring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = importlib.import_module("_protocol")
    monkeypatch.setattr(protocol, "Path", lambda _: Path("/does/not/exist"))
    assert protocol.peak_memory() is None
