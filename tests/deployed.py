"""A real deployment, started by the real command, changed and stopped by tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import deployer, must

from deployer import deployments
from deployer.deployments import DeploymentFolder, DeploymentRecord, DeploymentSpec
from deployer.home import Home
from deployer.serving.state import ServerFolder, ServerRecord

SMALL: dict[str, Any] = {"context": 512, "parallel": 2, "threads": 1}
"""Settings of a server that leaves room for others on a small machine."""


def document(
    name: str, servers: Mapping[str, Any], routes: list[dict[str, Any]], **gateway: Any
) -> dict[str, Any]:
    """A deployment's file as a value; `servers` maps a name to its bundle and settings."""
    told = {"port": 0, "max_waiting": 1000, "max_wait": 60.0, **gateway}
    return {"version": 1, "name": name, "gateway": told, "servers": servers, "routes": routes}


@dataclass
class Deployed:
    """A deployment that runs; `file` is what it was started with."""

    home: Home
    name: str
    file: Path

    @property
    def record(self) -> DeploymentRecord:
        found = DeploymentFolder.of(self.home, self.name).current()
        assert found is not None
        return found

    @property
    def url(self) -> str:
        return self.record.endpoint

    def server(self, name: str) -> ServerRecord | None:
        """The record of the process that stands for a server now."""
        told = self.record.servers.get(name)
        return ServerFolder.of(self.home, told.instance).current() if told else None

    def reload(self, wanted: Mapping[str, Any]) -> None:
        """Have it run something else; returns once it does."""
        write(self.file, wanted)
        ran = deployer("reload", self.name, "--json", home=self.home)
        assert ran.code == 0, ran.err + ran.out


def write(path: Path, wanted: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(wanted), encoding="utf-8")  # JSON is YAML
    return path


@contextmanager
def deployed(
    home: Home,
    folder: Path,
    wanted: Mapping[str, Any],
    change: Callable[[DeploymentSpec], DeploymentSpec] | None = None,
) -> Iterator[Deployed]:
    """Run a deployment until the context is left.

    With `change` it is started, stopped, and started again with what that makes of its spec: a
    way to settings that no user has.
    """
    name = str(wanted["name"])
    file = write(folder / f"{name}.yaml", wanted)
    try:
        must("serve", file, "--detach", home=home)
        if change:
            must("stop", name, home=home)
            spec = DeploymentSpec.read(DeploymentFolder.of(home, name).spec_file)
            deployments.serve(change(spec), home, detach=True)
        yield Deployed(home, name, file)
    finally:
        deployer("stop", name, "--json", home=home)
