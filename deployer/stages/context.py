"""What every stage is given: where things lie, whom to tell, and the toolchains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployer import process
from deployer.command import Command
from deployer.durable import full_disk_told
from deployer.errors import StageError
from deployer.home import Home
from deployer.progress import Progress, Step
from deployer.toolchains.provision import Toolchain, ensure
from deployer.toolchains.worker import run_worker, worker_environment


@dataclass
class StageContext:
    """One build's surroundings. `logs` is the build's own log folder.

    `toolchains` collects the ones that were entered, for the manifest.
    """

    home: Home
    progress: Progress
    logs: Path
    toolchains: dict[str, Toolchain] = field(default_factory=dict)

    def toolchain(self, name: str) -> Toolchain:
        """The toolchain of that name, made now if it is not there yet."""
        if name not in self.toolchains:
            self.toolchains[name] = ensure(name, self.home, self.progress)
        return self.toolchains[name]

    def log(self, name: str) -> Path:
        """An empty log file of that name, its folder made."""
        self.logs.mkdir(parents=True, exist_ok=True)
        path = self.logs / f"{name}.log"
        path.write_bytes(b"")
        return path

    def work(
        self,
        worker: str,
        toolchain: str,
        request: Mapping[str, Any],
        step: Step | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Run a worker in a toolchain, for at most `timeout` seconds, and give its response."""
        entered = self.toolchain(toolchain)
        log_path = self.log(worker)
        return run_worker(entered, worker, request, log_path=log_path, step=step, timeout=timeout)

    def require_finite(self, weights: Path) -> None:
        """Raise StageError, naming the tensor, where a weight is NaN or infinite.

        `weights` is a GGUF file or a folder of safetensors files.
        """
        with self.progress.step("look for NaN and Inf") as step:
            refuse_infinite(self.work("scan_weights", "llama-cpp", {"path": str(weights)}, step))

    def run(self, command: Command, step: Step | None = None) -> tuple[dict[str, Any], str]:
        """Carry a command out; gives (worker's response or {}, what it printed)."""
        name = command.worker or command.program
        if command.worker and command.toolchain:
            response = self.work(command.worker, command.toolchain, command.request or {}, step)
            return response, ""
        program = command.program
        if command.toolchain:
            program = str(self.toolchain(command.toolchain).program(program))
        log_path = self.log(name)
        with full_disk_told(name):
            process.run(
                [program, *command.arguments],
                env=worker_environment(command.env),
                log_path=log_path,
            )
        return {}, log_path.read_text(encoding="utf-8", errors="replace")


def refuse_infinite(found: Mapping[str, Any]) -> None:
    """Raise StageError where a scan (see workers/scan_weights.py) `found` a bad tensor."""
    if found["tensor"]:
        raise StageError(
            f"the tensor {found['tensor']} of {found['file']} holds values that are no finite "
            "numbers",
            "The weights are damaged, or too large for 16 bits; use another source.",
        )


def read_text(path: Path) -> str:
    """A text file; raises StageError where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StageError(f"{path} is not UTF-8 text", "Save it as UTF-8.") from error
