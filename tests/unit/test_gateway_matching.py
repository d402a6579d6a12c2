"""Expressions of a deployment file cannot stop the gateway."""

from __future__ import annotations

import time

import pytest

from deployer.gateway import matching
from deployer.gateway.matching import LONGEST, contains


@pytest.mark.parametrize(
    ("expression", "text", "found"),
    [
        ("paris", "The capital is PARIS.", True),
        (r"\b42\b", "it is 142", False),
        ("^a", "ba", False),
        ("x$", "y" * LONGEST + "x", False),
        ("", "", True),
    ],
)
def test_contains(expression: str, text: str, found: bool) -> None:
    assert contains(expression, text) is found


def test_a_search_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "SECONDS", 0.02)
    begun = time.process_time()
    assert contains("(a+)+$", "a" * 1000 + "b") is False
    assert time.process_time() - begun < 2
    assert contains("a", "a") is True
