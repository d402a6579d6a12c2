"""Made-up tables, outcomes and clocks for tests of the gateway's policy."""

from __future__ import annotations

from typing import Any

from deployer.gateway.outcome import Outcome
from deployer.gateway.routing import Table, Upstream
from deployer.recipe.deployment import Gateway, Route


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


class Heard:
    """Events, as they came."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def __call__(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def last(self, event: str) -> dict[str, object]:
        return next(fields for name, fields in reversed(self.events) if name == event)


def upstream(name: str, **changes: Any) -> Upstream:
    """A ready server of two slots on the loopback."""
    given = {
        "name": name, "instance": f"{name}.1", "url": "http://127.0.0.1:9",
        "model": f"model-{name}", "engine": "llama.cpp", "bundle": name, "digest": "0" * 64,
        "state": "ready", "slots": 2, "context": 512,
    }  # fmt: skip
    return Upstream.model_validate({**given, **changes})


def route(to: dict[str, float], model: str = "chat", **changes: Any) -> Route:
    return Route.model_validate({"model": model, "to": to, **changes})


def table(*routes: Route, upstreams: tuple[Upstream, ...], generation: int = 1) -> Table:
    return Table(
        deployment="demo",
        generation=generation,
        gateway=Gateway(),
        routes=routes,
        upstreams=upstreams,
    )


def outcome(server: str, kind: str = "ok", **changes: Any) -> Outcome:
    """A request of the route `chat` that took a second."""
    given = {"route": "chat", "server": server, "key": "ops", "status": 200, "seconds": 1.0}
    return Outcome(**{**given, "kind": kind, **changes})  # type: ignore[arg-type]
