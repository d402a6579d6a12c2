"""Half-precision numbers of kept distributions."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from deployer.toolchains.worker import WORKERS


@pytest.fixture
def distributions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, imported as a worker imports it, and forgotten afterwards."""
    monkeypatch.syspath_prepend(str(WORKERS))
    names = ("_distributions", "_protocol")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("_distributions")
    for name in names:
        sys.modules.pop(name, None)


def test_values_below_zero_are_halved_as_numpy_does_it(distributions: Any) -> None:
    values = -np.abs(np.random.default_rng(0).normal(0, 9, (64, 501))).astype(np.float32)
    values[0, :6] = [0.0, -1e-8, -1e-5, -6.1e-5, -2048.0, -65504.0]
    ours, theirs = distributions.to_half(values), values.astype(np.float16)
    steps = np.abs(ours.view(np.uint16).astype(int) - theirs.view(np.uint16).astype(int))
    assert np.count_nonzero(steps[1:]) < 0.01 * steps.size  # ties are rounded another way
    assert steps[1:].max() <= 1
    assert np.array_equal(ours[0, :6].astype(np.float32), theirs[0, :6].astype(np.float32))
    assert np.array_equal(distributions.from_half(ours), ours.astype(np.float32))


def test_what_is_too_low_for_half_precision_becomes_the_lowest(distributions: Any) -> None:
    values = np.array([-65505.0, -1e9, -np.inf], np.float32)
    assert distributions.to_half(values).tolist() == [-65504.0] * 3
