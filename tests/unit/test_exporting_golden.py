"""Exported files, compared with those kept in tests/golden/export.

A change of a renderer, or of an engine's arguments, changes them: look at the difference, and renew
them with DEPLOYER_RENEW_GOLDEN=1 .venv/bin/pytest -q tests/unit/test_exporting_golden.py
"""

from __future__ import annotations

import pytest
from export_examples import EXAMPLES, GOLDEN, RENEW, example, renewing


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_exported_file_is_as_it_was(name: str) -> None:
    path = GOLDEN / name
    if renewing():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(example(name), encoding="utf-8")
    assert path.exists(), f"write it with {RENEW}=1"
    assert example(name) == path.read_text(encoding="utf-8")


def test_no_file_is_kept_without_its_example() -> None:
    kept = {path.name for path in GOLDEN.iterdir()}
    ours = ("kubernetes-", "production-stack-", "kserve-")
    assert {name for name in kept if name.startswith(ours)} == set(EXAMPLES)
