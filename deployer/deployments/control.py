"""Deployments that run: list them, read their logs, stop them."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

from deployer.deployments.fleet import folders
from deployer.deployments.instance import clear_record
from deployer.deployments.state import ALIVE, DeploymentFolder, DeploymentRecord
from deployer.errors import UsageError
from deployer.home import Home
from deployer.progress import SILENT, Progress
from deployer.serving.control import read_lines
from deployer.serving.state import ALIVE as SERVING

MARGIN = 30.0
"""Seconds beyond all drain timeouts before a supervisor is taken for hung."""


def status(home: Home, name: str | None = None) -> list[DeploymentRecord]:
    """Every deployment that runs, failed or was lost, by name; with `name` that one alone.

    Raises UsageError where `name` is none.
    """
    if name is not None:
        return [known(home, name)]
    root = home.deployments
    names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    records = [DeploymentFolder(root / each).current() for each in names]
    return [record for record in records if record and record.state != "stopped"]


def is_known(home: Home, name: str) -> bool:
    """Whether there is a deployment of that name, stopped ones counted."""
    return DeploymentFolder(home.deployments / name).read() is not None


def known(home: Home, name: str) -> DeploymentRecord:
    """The record of a deployment; raises UsageError where there is none."""
    record = DeploymentFolder.of(home, name).current()
    if record is None:
        raise _unknown(home, name)
    return record


def _unknown(home: Home, name: str) -> UsageError:
    names = [record.name for record in status(home)]
    hint = (
        f"There are: {', '.join(names)}."
        if names
        else "None runs; start one: deployer serve deployment.yaml"
    )
    return UsageError(f"there is no deployment named {name}", hint)


def stop(home: Home, name: str, progress: Progress = SILENT) -> DeploymentRecord:
    """Drain and stop a deployment and give its last record, `state` "stopped".

    A supervisor that does not end in time is killed, and everything below it with it. A failed or
    lost deployment is cleared from the list. Raises UsageError where there is no such deployment,
    ServerError where it cannot be stopped.
    """
    folder = DeploymentFolder.of(home, name)
    record = known(home, name)
    if record.state == "stopped":
        raise _unknown(home, name)
    if record.state in ALIVE:
        with progress.step(f"Stopping {name}"):
            record.signal(signal.SIGTERM)
            record.await_end(patience(record) + MARGIN)
            record.signal(signal.SIGKILL)
            record.await_end(MARGIN)
    last = folder.read() or record
    cleared = {"state": "stopped", "gateway_pid": None, "ready_at": None, "retiring": ()}
    stopped = last.model_copy(update=cleared)
    folder.write(stopped)
    for server in folders(home, name):
        found = server.current()
        if found is not None and found.state not in SERVING:
            clear_record(server)
    return stopped


def patience(record: DeploymentRecord | None) -> float:
    """Seconds the gateway and then the servers may take to drain."""
    return 2 * record.drain_timeout if record else 0.0


def logs(home: Home, name: str, lines: int = 50, follow: bool = False) -> Iterator[str]:
    """The last `lines` lines of a gateway's log; `follow` goes on until the deployment ends.

    Raises UsageError where there is no such deployment.
    """
    known(home, name)
    folder = DeploymentFolder.of(home, name)

    def runs() -> bool:
        record = folder.current()
        return record is not None and record.state in ALIVE

    return read_lines(folder.gateway_log, lines, follow, runs)


def deployment_of(home: Home, server: str) -> str | None:
    """The running deployment that the server of that name belongs to, None where there is none."""
    for record in status(home):
        of_it = re.fullmatch(rf"{re.escape(record.name)}\.[a-z0-9_-]+\.\d+", server)
        if record.state in ALIVE and of_it:
            return record.name
    return None
