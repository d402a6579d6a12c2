"""Start a supervisor in a process of its own, and wait until its server is ready."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from deployer.errors import DeployerError, ReadinessTimeout, ServerError, ServerExited
from deployer.process import Child, clean_environment, spawn, tail
from deployer.serving.spec import Spec
from deployer.serving.state import ServerFolder, ServerRecord

POLL_SECONDS = 0.05


def spawn_supervisor(spec: Spec, folder: ServerFolder, *, outlive_us: bool) -> Child:
    """Start the supervisor of one server; it takes its engine with it, however it ends.

    Without `outlive_us` the kernel kills it when the thread that called this ends. Told to stop by
    SIGTERM it drains. What it says goes to the folder's supervisor.log.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.supervisor_log.unlink(missing_ok=True)
    spec.write(folder.spec_file)
    return spawn(
        (sys.executable, "-m", "deployer.serving", str(folder.root)),
        env=clean_environment(),
        log_path=folder.supervisor_log,
        cwd=folder.root,
        outlive_us=outlive_us,
    )


def await_ready(
    child: Child, spec: Spec, folder: ServerFolder, update: Callable[[float], None]
) -> ServerRecord:
    """Wait until the server of a spawned supervisor is ready; `update` gets the seconds so far.

    Raises what `ready_record` raises. The child is left as it is.
    """
    started = time.monotonic()
    while (record := ready_record(child, spec, folder)) is None:
        update(round(time.monotonic() - started, 1))
        time.sleep(POLL_SECONDS)
    return record


def ready_record(child: Child, spec: Spec, folder: ServerFolder) -> ServerRecord | None:
    """The record of a server that is ready, None while it starts.

    Raises ServerExited, ReadinessTimeout or ServerError where it will not be.
    """
    ended = child.poll() is not None
    record = folder.read()
    ours = record if record and record.supervisor_pid == child.pid else None
    if ours and ours.state == "ready":
        return ours
    if ours and ours.state == "failed":
        raise _as_error(ours.error, spec, folder)
    if ended:
        if ours and ours.state == "stopped":
            raise ServerError(f"{spec.name} was stopped before it was ready")
        raise _as_error(None, spec, folder)
    return None


def _as_error(error: dict[str, Any] | None, spec: Spec, folder: ServerFolder) -> DeployerError:
    """The error a supervisor recorded, else one with the last words it wrote."""
    if error is None:
        words = tail(folder.supervisor_log, 5)
        return ServerError(
            f"the supervisor of {spec.name} ended: {words or 'it said nothing'}",
            f"Log: {folder.supervisor_log}",
        )
    kinds = {kind.__name__: kind for kind in (ServerExited, ReadinessTimeout)}
    kind = kinds.get(str(error.get("type")), ServerError)
    return kind(str(error.get("message", "")), str(error.get("hint", "")))
