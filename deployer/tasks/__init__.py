"""Tasks: what a served model can do, asked through its endpoint and judged by a program.

    humaneval      write Python functions; judged by running them, confined (`sandbox`)
    instructions   a short set of our own; judged by exact checks
    lm_eval        lm-evaluation-harness, for its hundreds of tasks
    target         the endpoint      results, intervals   scores, and how sure they are

Perplexity sees damage that greedy answers hide, and tasks see damage that perplexity hides (a wrong
chat template); a bundle deserves both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from deployer.errors import UsageError
from deployer.home import Home
from deployer.progress import Progress
from deployer.tasks import humaneval, instructions
from deployer.tasks.intervals import Recovery, recovery
from deployer.tasks.lm_eval import PREFIX, HarnessTask
from deployer.tasks.results import Item, TaskResult
from deployer.tasks.target import Target

__all__ = [
    "DEFAULT", "TASKS", "Item", "Recovery", "Target", "TaskResult", "check", "recovery", "run",
]  # fmt: skip

Run = Callable[[Target, int | None, Home, Progress], TaskResult]
TASKS: Mapping[str, Run] = {"humaneval": humaneval.run, "instructions": instructions.run}
"""Tasks by name; those of the harness are named `lm-eval:NAME`."""
DEFAULT = tuple(TASKS)


def check(names: Sequence[str]) -> None:
    """Raise UsageError for a name that is no task, PlanError for one that cannot be run here."""
    for name in names:
        if name.startswith(PREFIX):
            HarnessTask.named(name).check()
        else:
            _named(name)


def run(
    names: Sequence[str], target: Target, limit: int | None, home: Home, progress: Progress
) -> tuple[TaskResult, ...]:
    """Run tasks one after another, each on its first `limit` items (all where None).

    Raises UsageError for an unknown name, PlanError and ToolchainError for what this machine
    lacks, ServerError where the endpoint fails: a task that was not finished has no result.
    """
    return tuple(_named(name)(target, limit, home, progress) for name in names)


def _named(name: str) -> Run:
    if name.startswith(PREFIX):
        return HarnessTask.named(name).run
    if name not in TASKS:
        raise UsageError(
            f"there is no task {name!r}", f"There are: {', '.join(TASKS)}, and {PREFIX}NAME."
        )
    return TASKS[name]
