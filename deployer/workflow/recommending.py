"""Recommend: find a comparison and an environment, and let `deployer.recommending` choose."""

from __future__ import annotations

from pathlib import Path

from deployer.comparison import COMPARISON, Comparison, read_comparison
from deployer.errors import UsageError
from deployer.home import Home
from deployer.recipe.environment import find_environment
from deployer.recommending import Recommendation
from deployer.recommending import recommend as choose

_MAKE_ONE = "Make one: deployer compare --matrix recipes/matrix/smollm2.yaml"


def recommend(environment: str, comparison: str | None, home: Home) -> Recommendation:
    """The format for an environment (a file or a name) by a comparison (default: the newest).

    Raises UsageError, RecipeError where one of them is not there or not whole.
    """
    wanted = find_environment(environment)
    return choose(find_comparison(comparison, home), wanted)


def find_comparison(what: str | None, home: Home) -> Comparison:
    """A comparison by its file, its folder or its id; the newest where nothing is named."""
    path = _newest(home) if what is None else _named(what, home)
    try:
        return read_comparison(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} holds no comparison that can be read", _MAKE_ONE) from error


def _newest(home: Home) -> Path:
    found = list(home.comparisons.glob(f"*/{COMPARISON}"))
    if not found:
        raise UsageError("there is no comparison yet", _MAKE_ONE)
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def _named(what: str, home: Home) -> Path:
    for path in (Path(what), home.comparisons / what):
        if path.is_file() or (path / COMPARISON).is_file():
            return path
    raise UsageError(
        f"there is no comparison {what}: neither here nor in {home.comparisons}",
        "Name a comparison.json, its folder, or the id that `deployer compare` printed.",
    )
