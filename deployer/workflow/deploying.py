"""Deployments: read the file, find or build every bundle, check all, then start or reload."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer import deployments
from deployer.artifacts import MANIFEST, Bundle, json_digest
from deployer.deployments import (
    DeploymentRecord,
    DeploymentSpec,
    Origin,
    PlannedServer,
)
from deployer.deployments.control import known
from deployer.deployments.preflight import check_address, check_gateway, check_same_door
from deployer.deployments.spec import instance_name
from deployer.errors import Problem, RecipeError, UsageError
from deployer.home import Home
from deployer.progress import Progress
from deployer.recipe import Recipe, override_recipe, read_recipe
from deployer.recipe.deployment import (
    DeployedServer,
    Deployment,
    deployment_around,
    is_deployment,
    read_deployment,
)
from deployer.recipe.document import HINTS, SUFFIXES
from deployer.serving.launching import prepare
from deployer.serving.spec import Spec
from deployer.serving.state import ALIVE
from deployer.workflow.building import build
from deployer.workflow.bundles import find_bundle
from deployer.workflow.served import on_loopback
from deployer.workflow.verifying import require_whole

NAME_LENGTH = 32
_OURS = ("gateway.", "serve.")


def is_deployment_file(what: str | None) -> bool:
    """Whether `deployer serve` was given the file of a deployment; raises as its reader."""
    return what is not None and Path(what).suffix in SUFFIXES and is_deployment(Path(what))


def serve(
    what: str | None,
    overrides: Sequence[str],
    home: Home,
    progress: Progress,
    *,
    name: str | None = None,
    detach: bool = False,
    on_ready: Callable[[DeploymentRecord], None] | None = None,
    key: Path | None = None,
) -> DeploymentRecord:
    """Serve a deployment's file, or one bundle or recipe behind a gateway of its own.

    Every bundle is found or built and verified first; with `key`, a PEM file, it must be signed by
    that key. Raises what building, verifying and starting raise.
    """
    origin = _origin(what, overrides, key, home)
    deployment = _read(origin, name, home, progress)
    deployments.check_free(home, deployment.name)
    check_gateway(deployment.gateway, progress)
    check_address(deployment.gateway)
    spec = _Resolving(deployment, origin, home, progress).resolve(generation=1)
    return deployments.serve(spec, home, progress, detach=detach, on_ready=on_ready)


def reload(
    name: str,
    file: Path | None,
    overrides: Sequence[str],
    home: Home,
    progress: Progress,
    key: Path | None = None,
) -> DeploymentRecord:
    """Have a running deployment run what its file says now, or what `file` says.

    `overrides` and `key`, where given, replace those it was served with. Servers whose bundle and
    settings are the same go on running. Raises ServerError where a new server does not come up;
    then, as after any error, what ran before goes on.
    """
    with deployments.reloading(home, name) as runs:
        origin = runs.origin
        if file is not None:
            origin = Origin(file=str(file.absolute()), key=origin.key)
        if overrides:
            origin = origin.model_copy(update={"overrides": tuple(overrides)})
        if key is not None:
            origin = origin.model_copy(update={"key": str(key.absolute())})
        deployment = _read(origin, name, home, progress)
        check_same_door(runs.gateway, deployment.gateway)
        check_gateway(deployment.gateway, progress)
        resolving = _Resolving(deployment, origin, home, progress, _running(runs, home))
        spec = resolving.resolve(runs.generation + 1)
        return deployments.reload(spec, home, progress)


def _origin(what: str | None, overrides: Sequence[str], key: Path | None, home: Home) -> Origin:
    """What the command was given, so that it means the same when it is read again elsewhere."""
    given = {"overrides": tuple(overrides), "key": str(key.absolute()) if key else None}
    if is_deployment_file(what):
        return Origin(file=str(Path(str(what)).absolute()), **given)
    if what is None:
        what = find_bundle(None, home).manifest.name
    elif Path(what).suffix in SUFFIXES or (Path(what) / MANIFEST).is_file():
        what = str(Path(what).absolute())
    return Origin(what=what, **given)


def _read(origin: Origin, name: str | None, home: Home, progress: Progress) -> Deployment:
    """The deployment of a file, or the one around a bundle or recipe."""
    if origin.file is not None:
        return read_deployment(Path(origin.file), origin.overrides, name)
    what = str(origin.what)
    ours = [each for each in origin.overrides if each.startswith(_OURS)]
    theirs = [each for each in origin.overrides if not each.startswith(_OURS)]
    if Path(what).suffix in SUFFIXES:
        if theirs:  # the bundle of a changed recipe is built here: a deployment names no overrides
            bundle = build(Path(what), theirs, home, progress).bundle
            source, model = {"bundle": str(bundle.root)}, bundle.manifest.name
        else:
            source, model = {"recipe": what}, read_recipe(Path(what)).name
    elif theirs:
        raise UsageError(
            f"--set {theirs[0]} would need another bundle",
            "Only serve.* and gateway.* can be changed when a bundle is served; name a recipe to "
            "rebuild.",
        )
    else:
        source, model = {"bundle": what}, find_bundle(what, home).manifest.name
    return deployment_around(source, model, name or _name_after(model), ours)


def _name_after(model: str) -> str:
    """A deployment's name made of a bundle's, which may hold more kinds of characters."""
    return re.sub(r"[^a-z0-9_-]", "-", model)[:NAME_LENGTH]


def _running(runs: DeploymentSpec, home: Home) -> dict[str, PlannedServer]:
    """The servers of what runs that live, by name."""
    seen = known(home, runs.name).servers
    return {
        name: planned
        for name, planned in runs.servers.items()
        if name in seen and seen[name].state in ALIVE
    }


@dataclass
class _Resolving:
    """One deployment on its way to a spec; `kept` are servers that run and may stay."""

    deployment: Deployment
    origin: Origin
    home: Home
    progress: Progress
    kept: dict[str, PlannedServer] | None = None

    def resolve(self, generation: int) -> DeploymentSpec:
        """Find or build every bundle, verify it and prepare its server."""
        servers: dict[str, PlannedServer] = {}
        reserved = 0
        for name, wanted in self.deployment.servers.items():
            bundle, recipe = self._bundle(name, wanted)
            fingerprint = _fingerprint(bundle, recipe)
            kept = (self.kept or {}).get(name)
            if kept is not None and kept.fingerprint == fingerprint:
                servers[name] = kept
                continue
            instance = instance_name(self.deployment.name, name, generation)
            ports = {planned.spec.port for planned in servers.values()}
            spec = self._prepare(instance, bundle, recipe, reserved, ports)
            reserved += spec.memory_bytes
            servers[name] = PlannedServer(
                instance=instance,
                digest=bundle.manifest.digest,
                fingerprint=fingerprint,
                spec=spec,
            )
        return DeploymentSpec(
            name=self.deployment.name,
            generation=generation,
            origin=self.origin,
            gateway=self.deployment.gateway,
            routes=self.deployment.routes,
            servers=servers,
        )

    def _bundle(self, name: str, wanted: DeployedServer) -> tuple[Bundle, Recipe]:
        """A server's bundle, verified, and its recipe with the deployment's settings."""
        if wanted.recipe is not None:
            bundle = build(Path(wanted.recipe), (), self.home, self.progress).bundle
        else:
            bundle = find_bundle(wanted.bundle, self.home)
        key = Path(self.origin.key) if self.origin.key else None
        require_whole(bundle, self.home, self.progress, key)
        return bundle, self._settings(name, wanted, bundle)

    def _settings(self, name: str, wanted: DeployedServer, bundle: Bundle) -> Recipe:
        """The bundle's own recipe with what the deployment sets; its keys are the gateway's."""
        changed: dict[str, Any] = {"serve.api_key_file": None, **wanted.overrides()}
        overrides = [f"{field}={json.dumps(value)}" for field, value in changed.items()]
        try:
            return override_recipe(bundle.manifest.recipe, overrides)
        except RecipeError as error:
            problems = [
                Problem(f"servers.{name}.{found.field}", found.message) for found in error.problems
            ]
            where = self.origin.file or "the deployment"
            raise RecipeError(where, problems, HINTS["deployment"]) from error

    def _prepare(
        self, instance: str, bundle: Bundle, recipe: Recipe, reserved: int, ports: set[int]
    ) -> Spec:
        """What its supervisor is to run, at a port that no other server of ours was given."""
        serve = on_loopback(recipe.serve)
        drain = max(serve.drain_timeout, self.deployment.gateway.drain_timeout)
        serve = serve.model_copy(update={"drain_timeout": drain})
        while True:
            spec = prepare(
                bundle,
                serve,
                self.home,
                self.progress,
                name=instance,
                device=recipe.target.device,
                reserved=reserved,
            )
            if spec.port not in ports:
                return spec


def _fingerprint(bundle: Bundle, recipe: Recipe) -> str:
    """The same for the same bundle with the same settings; its port is none of them."""
    return json_digest(
        {
            "bundle": str(bundle.root.absolute()),
            "digest": bundle.manifest.digest,
            "device": recipe.target.device,
            "serve": on_loopback(recipe.serve).model_dump(mode="json"),
        }
    )
