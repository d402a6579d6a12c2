"""What an engine adapter is asked and what it answers; the same for every engine.

An adapter is pure: it gets the facts of the machine as an argument, and returns a description of
the program to run. `deployer.serving` finds the facts and runs the program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from deployer.artifacts import Manifest
from deployer.command import Command
from deployer.recipe import Serve


@dataclass(frozen=True)
class Facts:
    """What is there on this machine.

    `cores` counts the physical cores this process may use. `programs` are the installed programs
    among those an adapter asks for, `toolchains` the toolchains that are already made.
    `spare_memory` is what remains, in bytes, once the model and its cache are loaded; None where
    that is not known. `has_gpu` tells of an NVIDIA GPU. `cache` is a folder where a server may
    keep what it compiled for its next start.
    """

    cores: int = 1
    has_gpu: bool = False
    programs: frozenset[str] = frozenset()
    toolchains: frozenset[str] = frozenset()
    spare_memory: int | None = None
    cache: Path | None = None


@dataclass(frozen=True)
class ModelToServe:
    """What is served, under which name, and the device that computes (auto, cpu, cuda).

    `weights` is a GGUF file or the folder of a checkpoint. `method` and `scheme` say how it was
    quantized, `load` how it is quantized while it is loaded (`Quantization.load`);
    `kv_bytes_per_token` is the key-value cache a token takes at 16 bits,
    0 where that is not known; `weights_bytes` is the size of the weights' files.
    """

    weights: Path
    alias: str
    device: str = "auto"
    method: str = "none"
    scheme: str | None = None
    kv_bytes_per_token: int = 0
    weights_bytes: int = 0
    load: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, manifest: Manifest, weights: Path, device: str) -> ModelToServe:
        """The model of a bundle, whose weights lie at `weights`."""
        quantization = manifest.quantization
        return cls(
            weights=weights,
            alias=manifest.name,
            device=device,
            method=str(quantization.get("method", "none")),
            scheme=quantization.get("scheme"),
            kv_bytes_per_token=int(quantization.get("kv_bytes_per_token") or 0),
            weights_bytes=manifest.weights_bytes,
            load=quantization.get("load"),
        )


@dataclass(frozen=True)
class Memory:
    """Bytes of this machine's memory a server holds: weights, key-value cache, everything else."""

    weights: int
    cache: int
    buffers: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.buffers


@dataclass(frozen=True)
class Scoring:
    """The worker that scores a text with an engine, and the toolchain it runs in."""

    toolchain: str
    worker: str


@dataclass(frozen=True)
class Launch:
    """A server that can be started.

    `drains` says that the program itself finishes running requests after SIGTERM; one that does
    not is only sent SIGTERM when `metrics` (a path, Prometheus text) shows that nothing runs.
    `health` is a path that answers 200 once the model is loaded, None where there is none.
    """

    server: str
    command: Command
    drains: bool
    health: str | None = "/health"
    metrics: str | None = "/metrics"
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Portable:
    """How the engine's own, public program serves a model on a machine without deployer.

    `program` and `arguments` together are the argv. `release` is what they were written for, for
    example "vllm 0.32.0"; `image` a public container image that has the program, None where there
    is none. `key_variable` is the variable of the environment that holds an API key.
    """

    program: tuple[str, ...]
    arguments: tuple[str, ...]
    env: Mapping[str, str]
    release: str
    image: str | None = None
    key_variable: str | None = None
    health: str = "/health"
    metrics: str = "/metrics"

    @property
    def argv(self) -> tuple[str, ...]:
        return (*self.program, *self.arguments)


class Engine(Protocol):
    """One inference engine."""

    name: str
    programs: tuple[str, ...]
    """Programs whose presence on PATH the adapter wants to know."""
    format: Literal["gguf", "checkpoint"]
    """What it loads."""

    def scoring(self, device: str) -> Scoring:
        """What measures a model's quality in this engine on `device` (cpu or cuda)."""

    def choose(self, wanted: str, facts: Facts) -> str:
        """The server to use where the recipe wants `wanted` ("auto" or a name).

        Raises PlanError where it is unknown or not there and cannot be made.
        """

    def memory(self, model: ModelToServe, serve: Serve, facts: Facts) -> Memory:
        """What the server will hold in this machine's memory (not a GPU's)."""

    def launch(self, server: str, model: ModelToServe, serve: Serve, facts: Facts) -> Launch:
        """How to start `server`; `serve.port` is the port to use and is not 0.

        Raises PlanError for settings that cannot be.
        """

    def portable(
        self, model: ModelToServe, serve: Serve, threads: int, release: str | None = None
    ) -> Portable:
        """The public program for the same settings; `release` is the engine's version there.

        0 `threads` leave their number to the program. Flags that a release does not know are left
        out. No API key is in it: `key_variable` names where it goes. Raises PlanError where the
        engine has no such program, or where settings need a newer release.
        """
