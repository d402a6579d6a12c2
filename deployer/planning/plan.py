"""What a plan is made of and from: frozen records, printable without doing anything."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from deployer.engines import Facts
from deployer.machine import Gpu
from deployer.planning.shape import ModelShape
from deployer.recipe import Recipe
from deployer.toolchains.specs import Host


@dataclass(frozen=True)
class Machine:
    """What of a machine decides a plan; `memory_bytes` is its main memory.

    `facts` decide nothing that is built, only which server a plan shows.
    """

    host: Host
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    facts: Facts = field(default_factory=Facts)


@dataclass(frozen=True)
class ResolvedSource:
    """A source, pinned: `identity` alone decides what is fetched.

    `format` is "checkpoint" or "gguf"; `quantized` tells whether a GGUF source has fewer than 16
    bits a weight already; `size_bytes` is None where it is not known before the download.
    """

    kind: str
    identity: Mapping[str, str]
    format: str
    quantized: bool = False
    size_bytes: int | None = None
    toolchains: tuple[str, ...] = ()
    shape: ModelShape | None = None

    @property
    def model_name(self) -> str:
        """What the model is called in the converted file: the same on every machine."""
        named = self.identity.get("repository") or self.identity.get("package")
        return named.split("==")[0] if named else "model"


@dataclass(frozen=True)
class Texts:
    """The two texts that a build reads: the SHA-256 of their files.

    Where the calibration set is a file of a hub's data set, `dataset` pins it (dataset, revision,
    file), and `calibration` is the digest of that; `evaluation_dataset` is the same for the
    evaluation text.
    """

    evaluation: str
    calibration: str
    dataset: Mapping[str, str] | None = None
    evaluation_dataset: Mapping[str, str] | None = None


@dataclass(frozen=True)
class PlannedStage:
    """One stage: what it does in words, its key, the toolchains it enters, its settings."""

    name: str
    summary: str
    key: str
    toolchains: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Obstacle:
    """Why this machine cannot carry a plan out that is good in itself, and what to do."""

    message: str
    hint: str


@dataclass(frozen=True)
class Plan:
    """What a build will do; printing it does nothing.

    `notes` are sentences for people: which tool was chosen and why, the memory it takes. `serve`
    is the argument vector of the server, `serve_env` what is added to its environment; BUNDLE
    stands for the bundle's folder in both.
    """

    recipe: Recipe
    source: ResolvedSource
    device: str
    stages: tuple[PlannedStage, ...]
    notes: tuple[str, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    serve: tuple[str, ...] = ()
    serve_env: Mapping[str, str] = field(default_factory=dict)

    def stage(self, name: str) -> PlannedStage | None:
        """The stage of that name, None where this plan has none."""
        return next((stage for stage in self.stages if stage.name == name), None)

    @property
    def toolchains(self) -> tuple[str, ...]:
        """Every toolchain the build may enter, in order of first use."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.toolchains))

    def describe(self) -> list[str]:
        """The notes and the server's command line, in words."""
        env = [f"{name}={value}" for name, value in self.serve_env.items()]
        return [*self.notes, f"Server: {shlex.join([*env, *self.serve])}"]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.recipe.name,
            "engine": self.recipe.target.engine,
            "device": self.device,
            "source": {"kind": self.source.kind, **self.source.identity},
            "toolchains": list(self.toolchains),
            "stages": [
                {
                    "name": stage.name,
                    "summary": stage.summary,
                    "key": stage.key,
                    "toolchains": list(stage.toolchains),
                    "settings": dict(stage.settings),
                }
                for stage in self.stages
            ],
            "notes": list(self.notes),
            "obstacles": [asdict(obstacle) for obstacle in self.obstacles],
            "serve": {"argv": list(self.serve), "env": dict(self.serve_env)},
            "recipe": self.recipe.model_dump(mode="json"),
        }
