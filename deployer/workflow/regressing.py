"""Two stored results: find them, see that they may be compared, and tell what became worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.errors import UsageError
from deployer.home import Home
from deployer.regression import (
    Change,
    Difference,
    changes,
    differences,
    incomparable,
    read_stored,
    regressed,
)
from deployer.report.regression import difference_lines, regression_lines, regression_table


@dataclass(frozen=True)
class Regressions:
    """What differs around two results, and every figure of both, judged."""

    around: tuple[Difference, ...]
    found: tuple[Change, ...]

    @property
    def regressed(self) -> tuple[Change, ...]:
        return regressed(self.found)

    @property
    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """(columns, rows) for the terminal: what did not stay the same."""
        return regression_table(self.found)

    def before(self) -> list[str]:
        """What stands above the table."""
        return difference_lines(self.around)

    def describe(self) -> list[str]:
        """What stands below the table."""
        return regression_lines(self.found)

    def as_json(self) -> dict[str, Any]:
        return {
            "differences": [each.as_json() for each in self.around],
            "changes": [each.as_json() for each in self.found],
            "regressed": len(self.regressed),
        }


def compare_stored(old: str, new: str, home: Home, *, force: bool = False) -> Regressions:
    """Compare two stored comparisons, or two load tests: folders, files, or names of folders.

    Raises UsageError where one cannot be read, and, unless `force`, where they were not asked the
    same, so that their figures tell nothing.
    """
    before, after = (read_stored(_folder(name, home)) for name in (old, new))
    around = differences(before, after)
    grave = incomparable(around)
    if grave and not force:
        told = "; ".join(difference_lines(grave)[:-1])
        raise UsageError(
            f"the two were not asked the same: {told}",
            "Measure again with the same workload, or look anyway with --force.",
        )
    return Regressions(around, changes(before, after))


def _folder(name: str, home: Home) -> Path:
    """A path, or the name of a folder in which deployer keeps its results."""
    kept = (folder / name for folder in (home.comparisons, home.loadtests))
    return next((path for path in (Path(name), *kept) if path.exists()), Path(name))
