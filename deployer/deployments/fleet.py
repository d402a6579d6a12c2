"""The servers of a deployment: started, watched, swapped for those of a reload, stopped."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deployer.deployments.instance import Instance
from deployer.deployments.reconcile import Action, decide
from deployer.deployments.spec import DeploymentSpec, generation_of
from deployer.deployments.state import DeployedRecord
from deployer.deployments.table import Standing
from deployer.errors import DeployerError
from deployer.home import Home
from deployer.serving.state import ALIVE, ServerFolder

OnEvent = Callable[..., None]


@dataclass(frozen=True)
class Refused:
    """A spec that was given up: why, and how far its servers had come."""

    spec: DeploymentSpec
    error: DeployerError
    servers: dict[str, DeployedRecord]


class Fleet:
    """All servers of one deployment; to be used from one thread that lives as long as they do.

    `applied` is what runs, `wanted` what shall run instead; `refused` the last spec given up.
    """

    def __init__(self, spec: DeploymentSpec, home: Home, on_event: OnEvent) -> None:
        self.wanted: DeploymentSpec | None = spec
        self.applied: DeploymentSpec | None = None
        self.refused: Refused | None = None
        self._home = home
        self._on_event = on_event
        self._instances: dict[str, Instance] = {}

    @property
    def spec(self) -> DeploymentSpec:
        """What runs; before the first time what shall, or should have."""
        spec = self.applied or self.wanted or (self.refused.spec if self.refused else None)
        assert spec is not None
        return spec

    def look(self) -> None:
        """See how every server is; forget those that were stopped and are gone."""
        for name, instance in list(self._instances.items()):
            if instance.stopping and instance.ended:
                del self._instances[name]
                instance.clear()
                self._clear_before(instance.server, name)
            elif instance.look() and instance.state in ("failed", "lost"):
                cause = instance.error.message.partition("\n")[0]
                self._on_event("server_failed", server=instance.server, instance=name, cause=cause)

    def _clear_before(self, server: str, last: str) -> None:
        """Delete the folders of a server's processes before its last one that is gone."""
        for found in folders(self._home, self.spec.name, server):
            number = generation_of(found.root.name)
            if found.root.name not in self._instances and number < generation_of(last):
                shutil.rmtree(found.root, ignore_errors=True)

    def act(self, known: int) -> None:
        """Do what there is to do now. After it `wanted` may have become `applied` or `refused`.

        `known` is the generation of the table that the gateway goes by.
        """
        now = time.monotonic()
        for instance in self._instances.values():
            if instance.retiring and instance.retired_at is None and known >= self.spec.generation:
                instance.retired_at = now
        seen = {name: instance.seen() for name, instance in self._instances.items()}
        for action in decide(self.applied, self.wanted, seen, now):
            self._do(action)

    def _do(self, action: Action) -> None:
        name = action.instance
        if action.deed == "start":
            self._start(name)
        elif action.deed == "retire":
            self._instances[name].retiring = True
        elif action.deed == "stop":
            self._instances[name].stop()
        elif action.deed == "apply":
            self._apply()
        else:
            assert self.wanted is not None
            error = self._instances[name].error
            self.refused = Refused(self.wanted, error, self.describe_new())
            self.wanted = None

    def _start(self, name: str) -> None:
        """Start a server, or one that was lost again."""
        if name not in self._instances:
            assert self.wanted is not None
            servers = self.wanted.servers.items()
            server, planned = next(each for each in servers if each[1].instance == name)
            folder = ServerFolder.of(self._home, name)
            self._instances[name] = Instance(server, planned, folder)
        self._instances[name].start()

    def _apply(self) -> None:
        """From now on the new spec is what runs."""
        assert self.wanted is not None
        before = self.applied.servers if self.applied else {}
        self.applied, self.wanted = self.wanted, None
        for name, instance in self._instances.items():
            # In the same table as the new ones: of two with one name the gateway takes one.
            instance.retiring = instance.routed and name not in self.applied.instances
        for server, planned in self.applied.servers.items():
            self._instances[planned.instance].routed = True
            old = before.get(server)
            if old is not None and old.instance != planned.instance:
                self._on_event(
                    "server_replaced", server=server, old=old.instance, new=planned.instance
                )

    def standing(self) -> Iterator[Standing]:
        """Those the gateway must know: of what runs, and the retiring ones; at first all."""
        for instance in self._instances.values():
            if instance.routed or self.applied is None:
                yield instance.standing()

    def describe(self) -> dict[str, DeployedRecord]:
        """How the servers of `spec` are."""
        found = self._instances
        servers = self.spec.servers.items()
        return {n: found[p.instance].describe() for n, p in servers if p.instance in found}

    def describe_new(self) -> dict[str, DeployedRecord]:
        """How the servers are that `wanted` adds to those that run."""
        runs = self.applied.instances if self.applied else {}
        servers = self.wanted.servers.items() if self.wanted else ()
        return {
            name: self._instances[planned.instance].describe()
            for name, planned in servers
            if planned.instance in self._instances and planned.instance not in runs
        }

    @property
    def retiring(self) -> tuple[str, ...]:
        """The processes that finish what they have."""
        return tuple(name for name, one in self._instances.items() if one.retiring)

    @property
    def all_ready(self) -> bool:
        """Whether every server of what runs is ready."""
        names = self.applied.instances if self.applied else {}
        return bool(names) and all(self._instances[name].state == "ready" for name in names)

    @property
    def all_ended(self) -> bool:
        return all(instance.ended for instance in self._instances.values())

    @property
    def longest_drain(self) -> float:
        """Seconds the slowest server may take to drain."""
        return max((one.drain_timeout for one in self._instances.values()), default=0.0)

    def stop(self) -> None:
        """Tell every server to drain and end; told again, they end at once."""
        for instance in self._instances.values():
            instance.stop()

    def kill(self) -> None:
        """End what still runs."""
        for instance in self._instances.values():
            instance.kill()


def folders(home: Home, deployment: str, server: str = "") -> Iterator[ServerFolder]:
    """The folders of a deployment's servers, running or not; with `server` of that one alone."""
    form = re.compile(rf"{re.escape(deployment)}\.{re.escape(server) or '[a-z0-9_-]+'}\.\d+")
    for root in sorted(home.servers.iterdir()) if home.servers.is_dir() else ():
        if form.fullmatch(root.name):
            yield ServerFolder(root)


def clear_folders(home: Home, deployment: str) -> None:
    """Delete the folders of a deployment's servers that run no more."""
    for found in folders(home, deployment):
        record = found.current()
        if record is None or record.state not in ALIVE:
            shutil.rmtree(found.root, ignore_errors=True)
