"""Start a deployment, and have a running one run something else."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from deployer.deployments.control import MARGIN, known, patience
from deployer.deployments.fleet import clear_folders
from deployer.deployments.spec import DeploymentSpec
from deployer.deployments.state import ALIVE, DeploymentFolder, DeploymentRecord, Reload
from deployer.deployments.supervisor import DeploymentSupervisor, name_taken
from deployer.deployments.words import changes
from deployer.errors import ServerError, UsageError
from deployer.home import Home
from deployer.process import Child
from deployer.progress import SILENT, Progress, Step
from deployer.serving.holding import hold_name
from deployer.serving.supervised import POLL_SECONDS

SERVES = ("ready", "degraded")
"""States of a deployment that answers."""
TAKEN_UP = 15.0
"""Seconds a supervisor may take to see a new spec."""


def serve(
    spec: DeploymentSpec,
    home: Home,
    progress: Progress = SILENT,
    *,
    detach: bool = False,
    on_ready: Callable[[DeploymentRecord], None] | None = None,
) -> DeploymentRecord:
    """Run a deployment that runs not yet.

    Detached, returns its record once it is ready. In the foreground, calls `on_ready` with it,
    serves until SIGTERM or SIGINT, and returns the last record; must then be called in the main
    thread. Raises ServerExited, ReadinessTimeout or ServerError where it does not come up.
    """
    check_free(home, spec.name)
    folder = DeploymentFolder.of(home, spec.name)
    folder.root.mkdir(parents=True, exist_ok=True)
    clear_folders(home, spec.name)
    spec.write(folder.spec_file)
    if not detach:
        return DeploymentSupervisor(spec, home, progress, on_ready).run()
    child = folder.spawn_supervisor(outlive_us=True)
    try:
        with progress.step(f"Starting {spec.name}") as step:
            record = _await_ready(child, folder, progress, step)
    except BaseException:
        child.stop(grace=patience(folder.read()) + MARGIN)  # it takes its children with it
        raise
    # It may outlive us; should it end first, this thread keeps it from staying a zombie.
    threading.Thread(target=child.wait, daemon=True).start()
    return record


def check_free(home: Home, name: str) -> None:
    """Raises ServerError where a deployment of that name runs, UsageError where it can be none."""
    running = DeploymentFolder.of(home, name).current()
    if running is not None and running.state in ALIVE:
        raise name_taken(name)


def _await_ready(
    child: Child, folder: DeploymentFolder, progress: Progress, step: Step
) -> DeploymentRecord:
    for record, ended in _watch(folder, progress, step, lambda: child.poll() is not None):
        if ours := folder.started(child, record, ended, SERVES):
            return ours
    raise AssertionError("unreachable")


def _watch(
    folder: DeploymentFolder, progress: Progress, step: Step, over: Callable[[], bool]
) -> Iterator[tuple[DeploymentRecord | None, bool]]:
    """The record again and again, and whether it was `over` before that was read, hence the last.

    `progress` is told what changes.
    """
    started = time.monotonic()
    before: DeploymentRecord | None = None
    while True:
        ended = over()
        record = folder.read()
        if record and before and record.supervisor_pid == before.supervisor_pid:
            for line in changes(before, record):
                progress.note(line)
        before = record
        yield record, ended
        step.update(round(time.monotonic() - started, 1))
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def reloading(home: Home, name: str) -> Iterator[DeploymentSpec]:
    """Hold the right to reload a deployment, and get what it runs.

    Raises UsageError where there is none that runs, ServerError where it is being reloaded.
    """
    folder = DeploymentFolder.of(home, name)
    record = known(home, name)
    if record.state not in SERVES:
        raise UsageError(
            f"{name} is {record.state}; only a deployment that serves can be reloaded",
            "Start it: deployer serve deployment.yaml",
        )
    with hold_name(folder.reload_lock, _busy(name)):
        runs = _read(folder.applied_file)
        last = _read(folder.spec_file).generation
        refused = record.reload.generation if record.reload else 0
        if last > max(runs.generation, refused) or (
            record.reload and record.reload.state == "under way"
        ):
            raise _busy(name)  # its command was ended, the supervisor goes on
        yield runs.model_copy(update={"generation": max(last, refused)})


def _read(path: Path) -> DeploymentSpec:
    try:
        return DeploymentSpec.read(path)
    except (OSError, ValueError) as error:
        raise ServerError(
            f"what {path.parent.name} runs cannot be read from {path}",
            "Stop the deployment and serve it again.",
        ) from error


def _busy(name: str) -> ServerError:
    return ServerError(
        f"{name} is being reloaded", f"Wait for it: deployer status {name} shows how far it is."
    )


def reload(spec: DeploymentSpec, home: Home, progress: Progress = SILENT) -> DeploymentRecord:
    """Have a running deployment run `spec` instead; returns once it does.

    To be called within `reloading`. Raises ServerError where a new server does not come up; then
    what ran before goes on.
    """
    folder = DeploymentFolder.of(home, spec.name)
    first = known(home, spec.name)
    spec.write(folder.spec_file)
    deadline = time.monotonic() + TAKEN_UP
    with progress.step(f"Reloading {spec.name}") as step:
        for record, ended in _watch(folder, progress, step, lambda: not first.supervised):
            if record is None or record.state not in ALIVE or ended:
                raise ServerError(f"{spec.name} ended while it was reloaded")
            told = record.reload
            if told is None or told.generation != spec.generation:
                if time.monotonic() > deadline:
                    raise ServerError(f"the supervisor of {spec.name} does not take it up")
            elif told.state == "failed":
                raise _refused(spec, told)
            elif told.state == "done" and told.error:
                raise folder.error_of(told.error)
            elif told.state == "done":
                return record
    raise AssertionError("unreachable")


def _refused(spec: DeploymentSpec, told: Reload) -> ServerError:
    error = told.error or {}
    return ServerError(
        f"{spec.name} was not changed: {error.get('message', 'a server did not come up')}",
        f"What ran before goes on. {error.get('hint', '')}".rstrip(),
    )
