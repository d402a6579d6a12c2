"""What an engine adapter is asked and what it answers; the same for every engine.

An adapter is pure: it gets the facts of the machine as an argument, and returns a description of
the program to run. `deployer.serving` finds the facts and runs the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deployer.command import Command
from deployer.recipe import Serve


@dataclass(frozen=True)
class Facts:
    """What is there on this machine.

    `cores` counts the physical cores this process may use. `programs` are the installed programs
    among those an adapter asks for, `toolchains` the toolchains that are already made.
    `spare_memory` is what remains, in bytes, once the model and its cache are loaded; None where
    that is not known.
    """

    cores: int = 1
    programs: frozenset[str] = frozenset()
    toolchains: frozenset[str] = frozenset()
    spare_memory: int | None = None


@dataclass(frozen=True)
class ModelToServe:
    """The weights file, the name clients ask for, and the device that computes."""

    weights: Path
    alias: str
    device: str = "auto"


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


class Engine(Protocol):
    """One inference engine."""

    name: str
    programs: tuple[str, ...]
    """Programs whose presence on PATH the adapter wants to know."""

    def choose(self, wanted: str, facts: Facts) -> str:
        """The server to use where the recipe wants `wanted` ("auto" or a name).

        Raises PlanError where it is unknown or not there and cannot be made.
        """

    def launch(self, server: str, model: ModelToServe, serve: Serve, facts: Facts) -> Launch:
        """How to start `server`; `serve.port` is the port to use and is not 0.

        Raises PlanError for settings that cannot be.
        """
