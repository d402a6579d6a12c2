"""Servers and deployments that run: which of them a name means, how they are, their end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer import deployments, serving
from deployer.deployments import DeploymentFolder, DeploymentRecord
from deployer.errors import UsageError
from deployer.home import Home
from deployer.progress import Progress
from deployer.serving import ServerRecord
from deployer.serving.state import ALIVE


@dataclass(frozen=True)
class Records:
    """What was found, or stopped."""

    servers: tuple[ServerRecord, ...] = ()
    deployments: tuple[DeploymentRecord, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "servers": [record.as_json() for record in self.servers],
            "deployments": [record.as_json() for record in self.deployments],
        }


def status(home: Home, name: str | None) -> Records:
    """Every server and deployment that runs, failed or was lost; with `name` that one alone.

    Raises UsageError where there is none of that name.
    """
    if name is None:
        return Records(tuple(serving.status(home)), tuple(deployments.status(home)))
    if is_deployment_named(name, home):
        return Records(deployments=tuple(deployments.status(home, name)))
    return Records(tuple(serving.status(home, name)))


def logs(name: str, home: Home, lines: int, follow: bool) -> Iterator[str]:
    """The last `lines` lines of a server's log, or of a deployment's gateway; raises UsageError."""
    read = deployments.logs if is_deployment_named(name, home) else serving.logs
    return read(home, name, lines, follow)


def is_deployment_named(name: str, home: Home) -> bool:
    """Whether `name` means a deployment; where a server has that name as well, the one that runs.

    One that was stopped counts for its log alone, where there is no server of that name.
    """
    found = DeploymentFolder(home.deployments / name).current() if _plain(name) else None
    if found is None or found.state in deployments.ALIVE:
        return found is not None
    servers = [record.name for record in serving.status(home)]
    return name not in servers


def _plain(name: str) -> bool:
    return Path(name).name == name


def only_running(home: Home) -> str:
    """The one deployment or server that runs; a deployment's servers are part of it.

    Raises UsageError where none runs, or several do.
    """
    whole = [one.name for one in deployments.status(home) if one.state in deployments.ALIVE]
    alone = [
        record.name
        for record in serving.status(home)
        if record.state in ALIVE and deployments.deployment_of(home, record.name) is None
    ]
    if len(whole) + len(alone) == 1:
        return (whole + alone)[0]
    if not whole and not alone:
        raise UsageError("no server runs", "Start one: deployer serve --detach")
    what = "servers and deployments" if whole else "servers"
    names = ", ".join(whole + alone)
    raise UsageError(f"{len(whole) + len(alone)} {what} run: {names}", "Name one of them.")


def stop(name: str, home: Home, progress: Progress) -> Records:
    """Drain and stop a deployment or a server.

    Raises UsageError where there is none of that name, and for a server that a deployment runs.
    """
    if is_deployment_named(name, home):
        return Records(deployments=(deployments.stop(home, name, progress),))
    owner = deployments.deployment_of(home, name)
    if owner is not None:
        raise UsageError(
            f"{name} is a server of the deployment {owner}",
            f"Take it out of the deployment's file and reload, or stop all of it: deployer stop "
            f"{owner}",
        )
    return Records(servers=(serving.stop(home, name, progress),))


def stop_all(home: Home, progress: Progress) -> Records:
    """Drain and stop every deployment, then every server that is left."""
    whole = [deployments.stop(home, each.name, progress) for each in deployments.status(home)]
    alone = [serving.stop(home, each.name, progress) for each in serving.status(home)]
    return Records(tuple(alone), tuple(whole))
