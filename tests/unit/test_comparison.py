"""The comparison document: its estimates, and that no format has a number it did not earn."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies
from made_up_comparison import made_up_comparison
from pydantic import ValidationError

from deployer.comparison import Row, estimate, half_width, read_comparison

MEASURED = made_up_comparison().measured[0].model_dump()
IDENTITY = {"name": "q4_0", "engine": "llama.cpp", "method": "gguf", "scheme": "q4_0"}


def test_an_estimate_is_students_interval() -> None:
    # Student's own sleep data (1908), second group: mean 2.33, sd 2.002, t(9) = 2.262
    hours = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = estimate(hours)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((2.33, 0.8977, 3.7623), abs=1e-3)


def test_one_trial_has_no_interval() -> None:
    found = estimate([3.0])
    assert found is not None
    assert (found.values, found.mean, found.low, found.high) == ((3.0,), 3.0, None, None)


@pytest.mark.parametrize("values", [[], [None], [1.0, None, 2.0]])
def test_a_figure_that_a_trial_lacks_is_none(values: list[float | None]) -> None:
    assert estimate(values) is None


@given(strategies.lists(strategies.floats(-1e6, 1e6), min_size=2, max_size=60))
def test_the_interval_shrinks_with_the_spread(values: list[float]) -> None:
    half = half_width(values)
    assert half == pytest.approx(2 * half_width([value / 2 for value in values]), abs=1e-6)
    assert half >= 1.96 * statistics.stdev(values) / len(values) ** 0.5 * 0.999 - 1e-9


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "unavailable", "reason": "needs a GPU", "quality": {"perplexity": {"value": 1}}},
        {"status": "unavailable", "reason": "needs a GPU", "serving": MEASURED["serving"]},
        {"status": "unavailable", "reason": "needs a GPU", "size": MEASURED["size"]},
        {"status": "failed", "reason": "it crashed", "serving": MEASURED["serving"]},
        {"status": "refused", "reason": "not good enough", "quality": {}, "size": MEASURED["size"]},
        {"status": "refused", "reason": "not good enough"},
        {"status": "unavailable"},
        {"status": "measured"},
        {**MEASURED, "reason": "but why"},
        {**MEASURED, "quality": None},
        {"status": "unavailable", "reason": "x", "tasks": [
            {"task": "t", "metric": "m", "items": 1, "value": 1, "low": 0, "high": 1}]},
    ],
)  # fmt: skip
def test_a_format_without_a_measurement_can_have_no_number(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Row.model_validate({**IDENTITY, **changes})


def test_a_format_that_cannot_run_is_a_row_with_its_reason() -> None:
    row = Row.model_validate({**IDENTITY, "status": "unavailable", "reason": "needs a GPU"})
    assert row.reason == "needs a GPU"
    assert (row.size, row.quality, row.serving, row.tasks) == (None, None, None, ())


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = made_up_comparison()
    (tmp_path / "comparison.json").write_text(written.model_dump_json(), encoding="utf-8")
    assert read_comparison(tmp_path) == read_comparison(tmp_path / "comparison.json") == written
    assert written.row("q4_0").name == "q4_0"
    with pytest.raises(KeyError):
        written.row("none")
