"""What a deployment's supervisor is asked to run: complete, checked, as JSON.

The command resolves a deployment's file to this; the supervisor builds, verifies and chooses
nothing. It holds no secret.
"""

from __future__ import annotations

from pathlib import Path

from deployer.artifacts import Record
from deployer.durable import write_atomically
from deployer.recipe.deployment import Gateway, Route
from deployer.serving.spec import Spec


class Origin(Record):
    """What `deployer serve` was given, so that a reload can read it again; paths are absolute.

    `file` is the deployment's file, or else `what` the bundle (name or folder) or recipe that was
    served with --gateway. `key` is the public key that must have signed the bundles.
    """

    file: str | None = None
    what: str | None = None
    overrides: tuple[str, ...] = ()
    key: str | None = None


class PlannedServer(Record):
    """One server: `spec` is what its own supervisor runs, under the name `instance`.

    `digest` is the bundle's. `fingerprint` stands for the bundle and all settings: a server with
    the same one goes on running when the deployment is reloaded.
    """

    instance: str
    digest: str
    fingerprint: str
    spec: Spec


class DeploymentSpec(Record):
    """Everything a supervisor must know. `generation` grows with every reload, and only grows."""

    name: str
    generation: int
    origin: Origin
    gateway: Gateway
    routes: tuple[Route, ...]
    servers: dict[str, PlannedServer]

    @property
    def instances(self) -> dict[str, PlannedServer]:
        """The servers by the names of their processes."""
        return {planned.instance: planned for planned in self.servers.values()}

    def write(self, path: Path) -> None:
        write_atomically(path, self.model_dump_json())

    @classmethod
    def read(cls, path: Path) -> DeploymentSpec:
        """Raises OSError or ValueError where there is none to read."""
        return cls.model_validate_json(path.read_bytes())


def instance_name(deployment: str, server: str, generation: int) -> str:
    """The name of a server's process: it tells one start of a server from the next."""
    return f"{deployment}.{server}.{generation}"


def generation_of(instance: str) -> int:
    """The generation in the name of a server's process."""
    return int(instance.rpartition(".")[2])
