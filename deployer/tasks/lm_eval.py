"""Tasks of lm-evaluation-harness (mmlu, gsm8k, …), run by the harness itself against the endpoint.

A task is `lm-eval:NAME`, or `lm-eval:FILE.yaml` for one that a local file defines; the files that
its data sets name are looked for beside it. All other data sets come from the model hub.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deployer.errors import PlanError, UsageError
from deployer.home import Home
from deployer.progress import Progress
from deployer.tasks.results import ANSWER_KEPT, Item, TaskResult
from deployer.tasks.target import Target
from deployer.toolchains import provision
from deployer.toolchains.worker import run_worker

PREFIX = "lm-eval:"
TOOLCHAIN = "lm-eval"
MAX_TOKENS = 256
_HUB_TIMEOUT = 10.0


@dataclass(frozen=True)
class HarnessTask:
    """One task of the harness; `file` is set where a local file defines it."""

    name: str
    file: Path | None = None

    @classmethod
    def named(cls, name: str) -> HarnessTask:
        """Read `lm-eval:WHAT`; UsageError where WHAT is a file that does not exist."""
        what = name.removeprefix(PREFIX)
        if not what.endswith((".yaml", ".yml")):
            return cls(what)
        path = Path(what).absolute()
        if not path.is_file():
            raise UsageError(f"there is no task file {what}", "Name the YAML file of the task.")
        return cls(path.stem, path)

    def check(self) -> None:
        """Raise PlanError where it needs the hub and the hub is out of reach."""
        if self.file is None and not hub_answers():
            raise PlanError(
                f"{PREFIX}{self.name} needs its data set, and the model hub cannot be reached",
                "Run it where the hub is in reach, or define the task in a YAML file with local "
                f"data and name that: --task {PREFIX}FILE.yaml",
            )

    def run(self, target: Target, limit: int | None, home: Home, progress: Progress) -> TaskResult:
        """Let the harness ask the first `limit` items (of each subtask) and score them."""
        self.check()
        toolchain = provision.ensure(TOOLCHAIN, home, progress)
        started = time.monotonic()
        with progress.step(f"{PREFIX}{self.name}") as step:
            response = run_worker(
                toolchain,
                "run_lm_eval",
                self._request(target, limit),
                log_path=home.logs / f"tasks-lm-eval-{_as_file(self.name)}.log",
                step=step,
                env=self._environment(target, home),
            )
        return self._result(response, limit, time.monotonic() - started)

    def _request(self, target: Target, limit: int | None) -> dict[str, Any]:
        return {
            "task": str(self.file or self.name),
            "local": self.file is not None,
            "url": target.url,
            "model": target.model,
            "limit": limit,
            "max_tokens": MAX_TOKENS,
            "scores_prompts": target.scores_prompts(),
            "tokenizer": str(target.tokenizer) if target.tokenizer else None,
        }

    def _environment(self, target: Target, home: Home) -> dict[str, str]:
        """The key goes by the environment, never by a file; the hub only where it is needed."""
        return {
            "OPENAI_API_KEY": target.api_key or "",
            "HF_HUB_OFFLINE": "1" if self.file else "0",
            "HF_HOME": str(home.cache / "huggingface"),
        }

    def _result(self, response: dict[str, Any], limit: int | None, seconds: float) -> TaskResult:
        items = tuple(
            Item(each["id"], float(each["score"]), "", str(each["answer"])[:ANSWER_KEPT])
            for each in response["items"]
        )
        settings = {
            "harness": response["version"], "kind": response["kind"], "filter": response["filter"],
            "subtasks": response["subtasks"], "temperature": 0, "max_tokens": MAX_TOKENS,
            "limit": limit, "tokens_asked": response["tokens_asked"],
        }  # fmt: skip
        return TaskResult.of(f"{PREFIX}{self.name}", response["metric"], items, settings, seconds)


def hub_answers() -> bool:
    """Whether the model hub can be reached; takes at most 10 s to find that it cannot."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        response = httpx.head(constants.ENDPOINT, timeout=_HUB_TIMEOUT, follow_redirects=True)
    except httpx.HTTPError:
        return False
    return response.status_code < 500


def _as_file(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)
