"""Enter a toolchain: run one worker script with its Python, JSON in, JSON out."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployer import process
from deployer.durable import full_disk_told
from deployer.errors import CommandError, StageError
from deployer.machine import usable_cores
from deployer.progress import Step
from deployer.toolchains.installation import Toolchain

WORKERS = Path(__file__).parent.parent / "workers"
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
)  # fmt: skip


def worker_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A worker's environment: no network look-ups, and no more threads than usable cores."""
    cores = str(usable_cores())
    threads = {name: os.environ.get(name, cores) for name in _THREAD_VARIABLES}
    settings = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return process.clean_environment({**settings, **threads, **(extra or {})})


def run_worker(
    toolchain: Toolchain,
    worker: str,
    request: Mapping[str, Any],
    *,
    log_path: Path,
    step: Step | None = None,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run `deployer/workers/WORKER.py` with `request` and give its response.

    Raises StageError for an error that the worker explains, StoreError where the disk filled up,
    CommandError (with the log's tail) when it crashes or takes over `timeout` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="deployer-worker-") as folder:
        request_path, response_path = Path(folder, "request.json"), Path(folder, "response.json")
        request_path.write_text(json.dumps(request), encoding="utf-8")
        script = WORKERS / f"{worker}.py"
        with full_disk_told(worker):
            process.run(
                [str(toolchain.python), "-I", str(script), str(request_path), str(response_path)],
                env=worker_environment(env),
                cwd=Path(folder),
                log_path=log_path,
                timeout=timeout,
                on_line=lambda line: _report(line, step),
            )
        return _read_response(response_path, worker, log_path)


def _report(line: str, step: Step | None) -> None:
    """Pass a progress line on; any other line is in the log already."""
    if step is None or not line.startswith("{"):
        return
    try:
        message = json.loads(line)
    except ValueError:
        return
    done, total = message.get("progress") or (None, None)
    step.update(done=done, total=total, note=message.get("note"))


def _read_response(path: Path, worker: str, log_path: Path) -> dict[str, Any]:
    try:
        response = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(
            f"worker {worker} ended without a response",
            f"The whole log is in {log_path}.",
            log_path=log_path,
            tail=process.tail(log_path),
        ) from error
    if "error" in response:
        raise StageError(response["error"]["message"], response["error"].get("hint", ""))
    result: dict[str, Any] = response
    return result
