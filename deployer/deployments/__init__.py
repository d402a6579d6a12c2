"""Deployments: several servers and a gateway, run, changed and stopped together.

    spec         what a supervisor is asked to run, resolved by the command
    supervisor   the process above all the others
    reconcile    what to do next, from what is wanted and what is seen; pure
    instance     one server's own supervisor          gateway_process  the gateway's process
    table        what the gateway is told; pure
    state        deployments/NAME/state.json          control   status, logs, stop
    launching    the command's side of a start and a reload

Every process dies with the one above it: supervisor -> supervisor of a server -> engine, and
supervisor -> gateway. Nothing here prints; functions return `DeploymentRecord`s.
"""

from __future__ import annotations

from deployer.deployments.control import deployment_of, logs, status, stop
from deployer.deployments.launching import check_free, reload, reloading, serve
from deployer.deployments.spec import DeploymentSpec, Origin, PlannedServer
from deployer.deployments.state import ALIVE, DeploymentFolder, DeploymentRecord

__all__ = [
    "ALIVE",
    "DeploymentFolder",
    "DeploymentRecord",
    "DeploymentSpec",
    "Origin",
    "PlannedServer",
    "check_free",
    "deployment_of",
    "logs",
    "reload",
    "reloading",
    "serve",
    "status",
    "stop",
]
