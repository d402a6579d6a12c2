"""What every exporter is given: one bundle, how it is to run there, and what it takes. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from deployer.artifacts import FOLDER, Manifest
from deployer.engines import ModelToServe, Portable, engine_named
from deployer.footprint import Footprint
from deployer.recipe import Serve

_NOT_OF_A_LABEL = re.compile(r"[^a-z0-9]+")
LABEL_LENGTH = 40


@dataclass(frozen=True)
class Options:
    """What the person who exports decides; None leaves it to the target.

    `image` is the container image with the engine, `release` the engine's version in it. `model`
    is where the target finds the bundle: a folder, or a reference such as
    oci://REGISTRY/NAME:TAG or pvc://CLAIM/PATH. `key_secret` names the target's secret with the
    API keys. `host` and `port` are where the server listens.
    """

    image: str | None = None
    release: str | None = None
    model: str | None = None
    replicas: int = 1
    namespace: str | None = None
    key_secret: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080


@dataclass(frozen=True)
class Deployment:
    """A bundle that is to run somewhere else."""

    manifest: Manifest
    footprint: Footprint
    options: Options = field(default_factory=Options)

    @property
    def label(self) -> str:
        """The bundle's name as a DNS label (RFC 1123), at most 40 characters."""
        return _NOT_OF_A_LABEL.sub("-", self.manifest.name.lower())[:LABEL_LENGTH].strip("-")

    @property
    def serve(self) -> Serve:
        """The recipe's serve section, with the host and the port of this deployment."""
        ours = {"host": self.options.host, "port": self.options.port, "api_key_file": None}
        return Serve.model_validate({**self.manifest.serve, **ours}, strict=False)

    @property
    def unplaced(self) -> tuple[str, ...]:
        """Overrides that let go of CPUs and nodes: the recipe named those of another machine."""
        named = (
            name for name in ("cores", "numa_node") if self.manifest.serve.get(name) is not None
        )
        return tuple(f"serve.{name}=null" for name in named)

    @property
    def gpus(self) -> int:
        """GPUs a replica takes."""
        if self.footprint.device != "cuda":
            return 0
        vllm = self.serve.vllm
        return vllm.tensor_parallel * vllm.pipeline_parallel

    def start(self, folder: str) -> Portable:
        """How the engine's public program serves the bundle that lies in `folder` there.

        Raises PlanError where the engine has no such program.
        """
        weights = Path(folder) / self.manifest.weights
        engine = engine_named(self.manifest.engine)
        model = ModelToServe.of(
            self.manifest, Path(folder) if self.manifest.weights == FOLDER else weights,
            self.footprint.device,
        )  # fmt: skip
        return engine.portable(model, self.serve, self.footprint.threads, self.options.release)
