"""Taking logits out of a running vLLM: which rows, and the checks that they are the right ones."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deployer.toolchains.worker import WORKERS

MODULES = (
    "score_vllm", "_checkpoint_text", "checkpoint_parity", "_scoring", "_distributions",
    "_protocol",
)  # fmt: skip
VOCABULARY = 8


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, imported as a worker imports it, beside a vLLM that has names only."""
    monkeypatch.syspath_prepend(str(WORKERS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=dict))
    yield importlib.import_module("score_vllm")
    for name in MODULES:
        sys.modules.pop(name, None)


class Rows(np.ndarray):
    """An array with the methods of a tensor that are used."""

    def cpu(self) -> Rows:
        return self

    def float(self) -> Rows:
        return self

    def numpy(self) -> np.ndarray:
        return np.asarray(self, np.float32)


class Engine:
    """Computes a prompt in steps of `step` tokens; draws from one row after each."""

    def __init__(self, step: int, told: Callable[[float], float] = lambda loss: loss) -> None:
        self.step = step
        self.told = told
        self.table = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY))
        self.model = SimpleNamespace(
            compute_logits=lambda hidden: self.table[hidden[:, 0]].view(Rows)
        )

    def apply_model(self, function: Callable[[Any], None]) -> None:
        function(self.model)

    def generate(self, prompts: list[Any], _: Any, use_tqdm: bool) -> list[Any]:
        ids = prompts[0]["prompt_token_ids"]
        hidden = np.array(ids)[:, None].view(Rows)
        for start in range(0, len(ids), self.step):
            self.model.compute_logits(hidden[start : start + self.step][-1:])
            if len(rows := hidden[start : min(start + self.step, len(ids) - 1)]):
                self.model.compute_logits(rows)
        return [SimpleNamespace(prompt_logprobs=[None, *map(self._entry, ids, ids[1:])])]

    def _entry(self, before: int, token: int) -> dict[int, Any]:
        row = self.table[before]
        loss = math.log(np.exp(row).sum()) - row[token]
        return {token: SimpleNamespace(logprob=-self.told(loss), rank=1)}


def windows(worker: Any, count: int = 2, window: int = 6) -> Any:
    ids = [(7 * place + 3) % VOCABULARY for place in range(count * (window - 1))]
    return worker.Windows({"ids": ids, "window": window}, list, 1)


def test_the_logits_of_all_scored_positions_are_taken_and_only_those(worker: Any) -> None:
    scores = worker._scores(Engine(3), windows(worker), {})
    assert (scores["windows"], scores["tokens"]) == (2, 10)
    split = worker._split_scores(Engine(3), windows(worker))
    assert scores["nll"] == pytest.approx(split["nll"], abs=1e-6)
    assert (split["kld"], split["cosine"]) == (None, None)


@pytest.mark.parametrize("window", [3, 4, 512, 513, 514, 1026, 4096])
def test_no_step_has_one_row_to_score(worker: Any, window: int) -> None:
    step = worker._step_tokens(window)
    assert 1 < step <= worker.STEP_TOKENS
    assert (window - 1) % step != 1


def test_a_step_of_one_row_would_be_missed_and_is_an_error(worker: Any) -> None:
    with pytest.raises(worker.WorkerError, match="4 rows of logits for a window of 6"):
        worker._scores(Engine(4), windows(worker), {})


def test_other_logits_than_the_engine_uses_are_an_error(worker: Any) -> None:
    with pytest.raises(worker.WorkerError, match="differ from its own losses"):
        worker._scores(Engine(3, told=lambda loss: loss + 0.01), windows(worker), {})


def test_a_window_beyond_the_models_context_says_what_fits(worker: Any) -> None:
    worker.check_length(511, 512, 512)
    with pytest.raises(worker.WorkerError, match="a context of 513; the model has 512") as caught:
        worker.check_length(512, 513, 512)
    assert "511" in caught.value.hint
