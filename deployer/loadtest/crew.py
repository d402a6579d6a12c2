"""Who puts the load: processes of this machine, or (leading.py) of others that join."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

LOOPBACK = "127.0.0.1"


class Crew(Protocol):
    """The processes that share a load."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def patience(self) -> float:
        """Seconds until all of them are there, at most."""

    def arguments(self) -> list[str]:
        """What Locust's command line says of them."""

    def begin(
        self,
        told: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        on_line: Callable[[str], None],
    ) -> None:
        """Let them know what to do; what they say of their progress goes to `on_line`."""

    def collect(self, folder: Path) -> None:
        """See that what each of them measured lies in `folder`."""


@dataclass(frozen=True)
class Processes:
    """So many of this machine, which write to the folder themselves."""

    size: int = 1
    patience: float = 0.0

    def arguments(self) -> list[str]:
        """Nothing for one; else a master with workers on the loopback, at a port of their own."""
        if self.size == 1:
            return []
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = str(probe.getsockname()[1])
        return [
            "--processes", str(self.size), "--master-bind-host", LOOPBACK,
            "--master-bind-port", port, "--master-host", LOOPBACK, "--master-port", port,
        ]  # fmt: skip

    def begin(
        self,
        told: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        on_line: Callable[[str], None],
    ) -> None:
        return

    def collect(self, folder: Path) -> None:
        return
