"""Every error deployer raises on purpose, and the exit code each one ends the command with.

    DeployerError                  1   anything that failed and could be explained
    ├── UsageError                 2   the command line asks for something that cannot be
    ├── RecipeError                2   the recipe has problems; all of them are listed
    ├── PlanError                  2   the recipe is well-formed but cannot be carried out here
    ├── SourceError                1   the model cannot be fetched, or must not be used
    ├── ToolchainError             1   an isolated environment could not be made
    ├── CommandError               1   a program we started failed; its log is named
    ├── StageError                 1   a build stage failed
    ├── StoreError                 1   the store is damaged, full or not writable
    ├── BundleError                1   a bundle is not as it was made, or not fit to be opened
    ├── QualityGateError           1   the model was measured and is not good enough
    ├── ServerError                1   a server misbehaved
    │   ├── ServerExited           1   it ended before or while it was needed
    │   └── ReadinessTimeout       1   it did not answer a real token in time
    └── LoadTestError              1   the load test could not be run
        └── InvalidMeasurement     3   it ran, but its numbers must not be trusted

Foreign exceptions are turned into one of these where they enter, with ``raise … from``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INVALID_MEASUREMENT = 3
EXIT_REGRESSION = 4
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
SHOWN_PROBLEMS = 40
"""How many problems of a recipe or a bundle are printed; `--json` has them all."""

FAULT_LENGTH = 300
"""Characters that are kept of a file's name, and of what is wrong with it."""


class DeployerError(Exception):
    """One clear sentence of what went wrong, and a hint of what to do next."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_json(self) -> dict[str, object]:
        """The `error` object that `--json` prints."""
        return {"type": type(self).__name__, "message": self.message, "hint": self.hint}


class UsageError(DeployerError):
    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe: where (1-based line, dotted field) and what."""

    field: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        field = f"{self.field}: " if self.field else ""
        return f"{where}{field}{self.message}"


class RecipeError(DeployerError):
    exit_code = EXIT_USAGE

    def __init__(
        self,
        path: Path | str,
        problems: Sequence[Problem],
        hint: str = "`deployer schema` prints every field; docs/recipe.md explains them.",
    ) -> None:
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        lines = "\n".join(f"  {problem}" for problem in self.problems[:SHOWN_PROBLEMS])
        if len(self.problems) > SHOWN_PROBLEMS:
            lines += f"\n  … and {len(self.problems) - SHOWN_PROBLEMS} more"
        super().__init__(f"{path} has {count}:\n{lines}", hint)

    def as_json(self) -> dict[str, object]:
        problems = [{"line": p.line, "field": p.field, "message": p.message} for p in self.problems]
        return {**super().as_json(), "problems": problems}


class PlanError(DeployerError):
    exit_code = EXIT_USAGE


class SourceError(DeployerError):
    pass


class ToolchainError(DeployerError):
    pass


class CommandError(DeployerError):
    """A child process failed; `tail` holds the last lines of its log."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        argv: Sequence[str] = (),
        returncode: int | None = None,
        log_path: Path | None = None,
        tail: str = "",
    ) -> None:
        super().__init__(message, hint)
        self.argv = tuple(argv)
        self.returncode = returncode
        self.log_path = log_path
        self.tail = tail

    def as_json(self) -> dict[str, object]:
        return {
            **super().as_json(),
            "argv": list(self.argv),
            "returncode": self.returncode,
            "log": str(self.log_path) if self.log_path else None,
            "tail": self.tail,
        }


class StageError(DeployerError):
    pass


class StoreError(DeployerError):
    pass


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a bundle: in which of its files ("" for the whole folder), and what."""

    file: str
    problem: str

    def __post_init__(self) -> None:
        for name in ("file", "problem"):  # names and messages of a forged file have any length
            object.__setattr__(self, name, getattr(self, name)[:FAULT_LENGTH])

    def __str__(self) -> str:
        """For a terminal: what would move its cursor or turn the text around is spelled out."""
        text = f"{self.file} {self.problem}" if self.file else self.problem
        return "".join(
            each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
        )

    def as_json(self) -> dict[str, str]:
        return {"file": self.file, "problem": self.problem}


class BundleError(DeployerError):
    """A bundle that must not be used; `faults` has all that is wrong with it."""

    def __init__(self, bundle: Path | str, faults: Sequence[Fault], hint: str = "") -> None:
        self.faults = tuple(faults)
        count = f"{len(self.faults)} problem{'s' if len(self.faults) != 1 else ''}"
        lines = "\n".join(f"  {fault}" for fault in self.faults[:SHOWN_PROBLEMS])
        if len(self.faults) > SHOWN_PROBLEMS:
            lines += f"\n  … and {len(self.faults) - SHOWN_PROBLEMS} more"
        super().__init__(f"the bundle {bundle} has {count}:\n{lines}", hint)

    def as_json(self) -> dict[str, object]:
        return {**super().as_json(), "problems": [fault.as_json() for fault in self.faults]}


class QualityGateError(DeployerError):
    """The model missed a limit of its recipe; `measured` holds the numbers."""

    def __init__(self, message: str, hint: str = "", *, measured: dict[str, object]) -> None:
        super().__init__(message, hint)
        self.measured = measured

    def as_json(self) -> dict[str, object]:
        return {**super().as_json(), "quality": self.measured}


class ServerError(DeployerError):
    pass


class ServerExited(ServerError):
    pass


class ReadinessTimeout(ServerError):
    pass


class LoadTestError(DeployerError):
    pass


class InvalidMeasurement(LoadTestError):
    exit_code = EXIT_INVALID_MEASUREMENT
