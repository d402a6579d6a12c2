"""Files that run a bundle somewhere else: one module a target, one table. Pure.

A renderer gets a `Deployment` and gives the files of its target, by name. It writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from deployer.exporting import (
    compose,
    docker,
    kserve,
    kubernetes,
    monitoring,
    production_stack,
    router,
    systemd,
)
from deployer.exporting.deployment import Deployment, Options

__all__ = ["RENDERERS", "UNMEASURED", "Deployment", "Options"]

RENDERERS: dict[str, Callable[[Deployment], Mapping[str, str]]] = {
    "systemd": systemd.render,
    "docker": docker.render,
    "compose": compose.render,
    "kubernetes": kubernetes.render,
    "production-stack": production_stack.render,
    "kserve": kserve.render,
    "vllm-router": router.render,
    "monitoring": monitoring.render,
}
UNMEASURED: frozenset[str] = frozenset({"monitoring"})
"""Targets whose files say nothing of memory and start times, so that no server is started."""
