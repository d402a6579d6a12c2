"""Who puts the load: processes of this machine, or (leading.py) of others that join."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"


class Crew:
    """The `size` processes of this machine that share a load, and write to its folder themselves.

    `patience` is how many seconds it takes at most until all of them are there.
    """

    patience = 0.0

    def __init__(self, size: int = 1) -> None:
        self.size = size

    def arguments(self) -> list[str]:
        """What Locust's command line says of them: nothing of a single one.

        Else a master with workers on the loopback, at a port of their own.
        """
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
        """Tell them what to do, where they are elsewhere; their progress goes to `on_line`."""

    def collect(self, folder: Path) -> None:
        """Bring what they measured into `folder`, where they are elsewhere."""
