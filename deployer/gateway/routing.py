"""What the gateway is told: servers that are there, and the routes to them.

The deployment's supervisor writes the table as one JSON file and replaces it whenever anything
changes; the gateway reads it again when the file is another one. The gateway never writes it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from deployer.artifacts import Record, file_identity
from deployer.gateway.events import OnEvent
from deployer.recipe.deployment import Gateway, Route


class Upstream(Record):
    """A server as the gateway needs it.

    `name` is that of the deployment's file, and the label in metrics; `instance` tells one start
    of it from another with another bundle. `model` is the name the engine knows its model by.
    `state` is the server record's. `retiring`: it finishes what it has and gets nothing new.
    `slots` are requests it decodes at once, `context` tokens a request may use. `health` and
    `metrics` are paths.
    """

    name: str
    instance: str
    url: str
    model: str
    engine: str
    bundle: str
    digest: str
    state: str
    retiring: bool = False
    slots: int
    context: int
    health: str | None = "/health"
    metrics: str | None = "/metrics"
    restarts: int = 0


class Table(Record):
    """Everything the gateway goes by; `generation` grows with each deployment file applied."""

    deployment: str
    generation: int
    gateway: Gateway
    routes: tuple[Route, ...]
    upstreams: tuple[Upstream, ...] = Field(())

    def upstream(self, name: str) -> Upstream | None:
        """The server of that name that gets new requests, None where there is none."""
        return next((u for u in self.upstreams if u.name == name and not u.retiring), None)

    def route(self, model: str) -> Route | None:
        return next((route for route in self.routes if route.model == model), None)


def read_table(path: Path) -> Table:
    """Read a table; raises OSError or ValueError where there is none to read."""
    return Table.model_validate_json(path.read_bytes())


class TableFile:
    """The table in force, read again when its file is another one.

    A file that is bad or gone is refused by an event, once, and changes nothing.
    """

    def __init__(self, path: Path, on_event: OnEvent) -> None:
        """Raises OSError or ValueError where there is no table to begin with."""
        self._path = path
        self._on_event = on_event
        self._identity: str | None = file_identity(path)
        self.table = read_table(path)

    def get(self) -> Table:
        return self.table

    def check(self) -> bool:
        """Look at the file; tells whether another table holds now."""
        try:
            identity = file_identity(self._path)
        except OSError:
            identity = None
        if identity == self._identity:
            return False
        self._identity = identity
        try:
            table = read_table(self._path)
        except (OSError, ValueError) as error:
            self._on_event("table_refused", reason=type(error).__name__)
            return False
        changed, self.table = table != self.table, table
        return changed
