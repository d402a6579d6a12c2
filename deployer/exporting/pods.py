"""What a pod runs, and its figures: the same for every target in a cluster. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deployer.engines import Portable
from deployer.exporting import places, sizing
from deployer.exporting.deployment import Deployment
from deployer.exporting.flags import value
from deployer.exporting.kubernetes_objects import Labels
from deployer.exporting.sizing import MIB, Figure
from deployer.exporting.yaml_text import Path

SERVER, KEY = "server", "api-key"
"""Names of the container, and of the entry in the secret that holds the API key."""
PRE_STOP = 5
"""Seconds until the cluster sends no new request to a pod that is to end."""
READY_FAILURES = 3
ALIVE_SECONDS, ALIVE_FAILURES, ALIVE_TIMEOUT = 20, 6, 10
"""Liveness: seconds between two questions, failures until a restart, seconds for an answer."""


@dataclass(frozen=True)
class Server:
    """All that a pod's parts are made from; `together` pods make one replica."""

    deployment: Deployment
    place: places.Place
    start: Portable
    image: str
    together: int = 1

    @property
    def gpus(self) -> int:
        """GPUs of one pod."""
        return self.deployment.gpus // self.together

    @property
    def drains(self) -> bool:
        """Whether the server finishes running requests after SIGTERM by itself."""
        return value(self.start.arguments, "--shutdown-timeout") is not None


def server(deployment: Deployment, together: int = 1) -> Server:
    """What a pod runs, the bundle found as `places.place` says.

    Raises PlanError where the bundle cannot be served there.
    """
    return serving(deployment, places.place(deployment), together)


def serving(deployment: Deployment, place: places.Place, together: int = 1) -> Server:
    """What a pod runs that finds the bundle in `place`; raises PlanError where it cannot."""
    inside = replace(deployment, options=replace(deployment.options, host="0.0.0.0"))
    start = inside.start(place.folder)
    return Server(inside, place, start, places.image(inside, start.image), together)


def name(deployment: Deployment) -> str:
    """What the objects are called; a Service's name must begin with a letter (RFC 1035)."""
    label = deployment.label
    return label if label[0].isalpha() else f"model-{label}"


def labels(deployment: Deployment) -> Labels:
    """What selects the pods of this deployment; the same for every bundle of this name."""
    return {"app.kubernetes.io/name": name(deployment), "app.kubernetes.io/component": SERVER}


def all_labels(deployment: Deployment) -> Labels:
    """`labels` and those that tell of the bundle."""
    return {
        **labels(deployment),
        "app.kubernetes.io/version": deployment.manifest.digest[:12],
        "app.kubernetes.io/managed-by": "deployer",
    }


def header(of: Server, target: str, command: str) -> list[str]:
    """The first lines of a file: what it is, where its figures come from, how it is used."""
    deployment, manifest = of.deployment, of.deployment.manifest
    lines = [
        f"{manifest.name} for {of.start.release}, made by `deployer export --to {target}`",
        f"bundle {manifest.digest}",
        f"figures: {deployment.footprint.origin}",
    ]
    secret, space = deployment.options.key_secret, deployment.options.namespace
    if secret and of.start.key_variable:
        where = f" --namespace {space}" if space else ""
        lines += [
            "The API key is in a file, alone and without a line end:",
            f"kubectl{where} create secret generic {secret} --from-file={KEY}=FILE",
        ]
    return [*lines, command]


def figures(of: Server) -> dict[str, tuple[Path, Figure]]:
    """The figures of a pod: under which name, at which place of its template, and why."""
    deployment = of.deployment
    container: Path = ("spec", "containers", 0)
    resources = (*container, "resources")
    return {
        "grace-period": (("spec", "terminationGracePeriodSeconds"), grace(of)),
        "cpu-request": ((*resources, "requests", "cpu"), sizing.cpus(deployment, of.gpus)),
        "memory-request": ((*resources, "requests", "memory"), sizing.memory_request(deployment)),
        "memory-limit": ((*resources, "limits", "memory"), sizing.memory_limit(deployment)),
        "startup-failures": (
            (*container, "startupProbe", "failureThreshold"), sizing.startup_failures(deployment),
        ),
        "pre-stop": ((*container, "lifecycle", "preStop", "sleep"), pre_stop(of)),
    }  # fmt: skip


def remarks(of: Server) -> dict[Path, str]:
    """All comments of a pod's template: its figures, and what its probes mean."""
    container: Path = ("spec", "containers", 0)
    return {
        **{path: figure.why for path, figure in figures(of).values()},
        (*container, "readinessProbe"): "whether it answers just now; requests go elsewhere if not",
        (*container, "livenessProbe"): "whether there still is a process that takes connections; "
        "a server that is only busy is not restarted",
    }


def pre_stop(of: Server) -> Figure:
    """Seconds between the order to end and SIGTERM."""
    if of.drains:
        return Figure(PRE_STOP, f"{PRE_STOP} s until the cluster sends no new request here")
    drain = sizing.drain_seconds(of.deployment)
    return Figure(
        PRE_STOP + drain.value,
        f"{PRE_STOP} s until the cluster sends no new request here, then {drain.value} s to "
        "drain, since this server cuts running requests off when it gets SIGTERM",
    )


def grace(of: Server) -> Figure:
    """Seconds between the order to end and SIGKILL."""
    return sizing.grace_seconds(of.deployment, before=PRE_STOP)


def quantity(size: int) -> str:
    """Whole MiB as Kubernetes writes them."""
    return f"{size // MIB}Mi"
