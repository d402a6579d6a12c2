"""What errors say, to people and to scripts."""

from __future__ import annotations

from deployer.errors import SHOWN_PROBLEMS, Problem, RecipeError


def test_a_recipe_error_lists_its_problems_and_cuts_a_flood() -> None:
    problems = [Problem("a.b", f"wrong {number}", number) for number in range(1, 100)]
    error = RecipeError("recipe.yaml", problems)
    assert error.message.startswith("recipe.yaml has 99 problems:\n  line 1: a.b: wrong 1\n")
    assert error.message.endswith(f"… and {99 - SHOWN_PROBLEMS} more")
    assert len(error.as_json()["problems"]) == 99  # type: ignore[arg-type]
