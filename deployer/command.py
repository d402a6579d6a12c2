"""A program to run, described and not yet run: what adapters return and stages carry out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Command:
    """One argv to be, with the toolchain that provides its program.

    `program` is a file of the toolchain's `bin` folder; with `toolchain` None it is looked up
    on PATH. `worker` names a script of `deployer/workers` (without `.py`) that the toolchain's
    Python runs instead of a program, with `request` as its JSON input where it takes one. `env`
    is added to a clean environment.
    """

    toolchain: str | None
    program: str = "python"
    arguments: tuple[str, ...] = ()
    worker: str | None = None
    request: Mapping[str, Any] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
