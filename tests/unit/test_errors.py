"""What errors say, to people and to scripts."""

from __future__ import annotations

from deployer.errors import (
    FAULT_LENGTH,
    SHOWN_PROBLEMS,
    BundleError,
    Fault,
    Problem,
    RecipeError,
)


def test_a_recipe_error_lists_its_problems_and_cuts_a_flood() -> None:
    problems = [Problem("a.b", f"wrong {number}", number) for number in range(1, 100)]
    error = RecipeError("recipe.yaml", problems)
    assert error.message.startswith("recipe.yaml has 99 problems:\n  line 1: a.b: wrong 1\n")
    assert error.message.endswith(f"… and {99 - SHOWN_PROBLEMS} more")
    assert len(error.as_json()["problems"]) == 99  # type: ignore[arg-type]


def test_a_bundle_error_lists_its_faults_and_cuts_a_flood() -> None:
    faults = [Fault("a.json", f"is wrong {number}") for number in range(1, 100)]
    error = BundleError("bundle", faults)
    assert error.message.startswith("the bundle bundle has 99 problems:\n  a.json is wrong 1\n")
    assert error.message.endswith(f"… and {99 - SHOWN_PROBLEMS} more")
    assert len(error.as_json()["problems"]) == 99  # type: ignore[arg-type]


def test_a_fault_cannot_write_to_the_terminal_what_it_likes() -> None:
    fault = Fault("a\x1b[2J\u202e.json", "is\nfine")
    assert str(fault) == r"a\x1b[2J\u202e.json is\nfine"
    assert len(Fault("", "x" * 10**6).problem) == FAULT_LENGTH
