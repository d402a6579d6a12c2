"""A stage context whose workers answer from a table: no toolchain, no process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deployer.command import Command
from deployer.home import Home
from deployer.progress import Silent, Step
from deployer.stages.context import StageContext
from deployer.toolchains.installation import Toolchain

Answer = Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]]


def scored(request: Mapping[str, Any], perplexity: float) -> dict[str, Any]:
    """What a scoring worker answers of a model that finds every token as likely as any other."""
    tokens = request["windows"] * (request["window"] - 1)
    if "keep" in request:
        Path(request["keep"]).mkdir()
    return {
        "nll": [math.log(perplexity)] * tokens, "top1": [1] * tokens,
        "kld": [0.25] * tokens if "reference" in request else None, "cosine": None,
        "window": request["window"], "windows": request["windows"], "tokens": tokens,
        "bos": True, "ids_sha256": "i", "engine_version": "1", "sample": " Paris.",
    }  # fmt: skip


class Listener(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class FakeContext(StageContext):
    """`answers` maps a worker or program to its response, or to a function of its request.

    `asked` lists what was run: (worker or program, request or arguments). A program's answer may
    hold its printed "log".
    """

    def __init__(self, root: Path, answers: Mapping[str, Answer] | None = None) -> None:
        super().__init__(Home(root / "home"), Listener(), root / "logs")
        self.answers: dict[str, Answer] = {
            "scan_weights": {"tensors": 1, "tensor": None, "file": None},
            **(answers or {}),
        }
        self.asked: list[tuple[str, Any]] = []

    def toolchain(self, name: str) -> Toolchain:
        made = Toolchain(name, "0" * 64, self.home.toolchains / name, {name: "1.0"})
        (made.root / "source").mkdir(parents=True, exist_ok=True)
        self.toolchains[name] = made
        return made

    def _answer(self, name: str, request: Any) -> dict[str, Any]:
        self.asked.append((name, request))
        answer = self.answers[name]
        return dict(answer(request) if callable(answer) else answer)

    def work(
        self,
        worker: str,
        toolchain: str,
        request: Mapping[str, Any],
        step: Step | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        self.toolchain(toolchain)
        return self._answer(worker, request)

    def run(self, command: Command, step: Step | None = None) -> tuple[dict[str, Any], str]:
        if command.worker and command.toolchain:
            return self.work(command.worker, command.toolchain, command.request or {}), ""
        return {}, str(self._answer(command.program, command.arguments).get("log", ""))
