"""What can be compared with its like: a stored comparison, or a stored load test."""

from __future__ import annotations

from pathlib import Path

from deployer.comparison import COMPARISON, Comparison, read_comparison
from deployer.errors import UsageError
from deployer.results import RESULT, LoadTestResult, read_result

Stored = Comparison | LoadTestResult


def read_stored(path: Path) -> Stored:
    """The result in a folder, or its document (`result.json` by that name); raises UsageError."""
    document = path
    if path.is_dir():
        document = path / (COMPARISON if (path / COMPARISON).is_file() else RESULT)
    try:
        if document.name == RESULT:
            return read_result(document.parent)
        return read_comparison(document)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} holds no stored comparison or load test that can be read",
            f"Name a folder with a {COMPARISON} or a {RESULT}.",
        ) from error


def two_kinds() -> UsageError:
    """What is raised where one is a comparison and the other a load test."""
    return UsageError(
        "a comparison and a load test have no figures in common",
        "Name two comparisons, or two load tests.",
    )
