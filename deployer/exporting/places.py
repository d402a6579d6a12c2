"""Where a pod finds the bundle and the engine's image. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deployer.errors import PlanError
from deployer.exporting.container import MODELS
from deployer.exporting.deployment import Deployment
from deployer.exporting.kubernetes_objects import Claim, ImageSource, Mount, Volume

MOUNTED = "/bundle"
VOLUME = "bundle"

_REFERENCE = re.compile(r"[a-z0-9][\w.:@/-]*", re.ASCII)
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PATH = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)


@dataclass(frozen=True)
class Place:
    """The bundle's folder in the container, and the volume that brings it there, if any."""

    folder: str
    volume: Volume | None = None
    mount: Mount | None = None


def place(deployment: Deployment) -> Place:
    """Where the bundle is: in an image volume, in a claim, or in the server's own image.

    Raises PlanError where `Options.model` says neither.
    """
    model = deployment.options.model
    if model is None and deployment.options.image:
        return Place(MODELS)
    kind, _, rest = (model or "").partition("://")
    if kind == "oci":
        source = ImageSource(reference=checked_reference(rest))
        volume = Volume(name=VOLUME, image=source)
        mount = Mount(name=VOLUME, mount_path=MOUNTED, read_only=True)
        return Place(MOUNTED + MODELS, volume, mount)
    if kind == "pvc":
        claim, _, path = rest.partition("/")
        return _claimed(checked_name(claim, "the claim"), path.strip("/"))
    raise PlanError(
        f"a pod cannot find the bundle in {model}" if model else "a pod must find the bundle",
        "Give --model oci://REGISTRY/NAME:TAG (a pushed OCI layout) or --model pvc://CLAIM/PATH, "
        f"or --image of an image that has the bundle in {MODELS}.",
    )


def _claimed(claim: str, path: str) -> Place:
    if path and (not _PATH.fullmatch(path) or ".." in path.split("/")):
        raise PlanError(f"{path} is no path in a claim", "Give --model pvc://CLAIM/FOLDER/BUNDLE.")
    volume = Volume(name=VOLUME, persistent_volume_claim=Claim(claim_name=claim))
    mount = Mount(name=VOLUME, mount_path=MOUNTED, sub_path=path or None, read_only=True)
    return Place(MOUNTED, volume, mount)


def image(deployment: Deployment, public: str | None) -> str:
    """The server's image: as asked for, else the engine's public one; raises PlanError."""
    chosen = deployment.options.image or public
    if chosen is None:
        raise PlanError(
            f"no public image of {deployment.manifest.engine} for "
            f"{deployment.footprint.device} was checked",
            "Build one with `deployer export --to docker` and name it with --image.",
        )
    return checked_reference(chosen)


def checked_reference(reference: str) -> str:
    """An image's reference as it is; raises PlanError where it can be none."""
    if not _REFERENCE.fullmatch(reference):
        raise PlanError(
            f"{reference!r} is no reference of an image", "Give it as REGISTRY/NAME:TAG."
        )
    return reference


def checked_name(name: str, what: str) -> str:
    """A name in a cluster as it is; raises PlanError where it can be none."""
    if not _NAME.fullmatch(name):
        raise PlanError(
            f"{name!r} cannot be the name of {what}",
            "Use at most 63 lower-case letters, digits and dashes.",
        )
    return name
