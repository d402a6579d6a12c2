"""The table the gateway goes by, from what runs and how it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deployer.deployments.spec import DeploymentSpec, PlannedServer
from deployer.gateway.routing import Table, Upstream


@dataclass(frozen=True)
class Standing:
    """One process for the table: the server it is, and how it is."""

    server: str
    planned: PlannedServer
    state: str
    restarts: int = 0
    retiring: bool = False


def make_table(spec: DeploymentSpec, port: int, standing: Iterable[Standing]) -> Table:
    """The table for `spec`, whose gateway listens at `port`."""
    return Table(
        deployment=spec.name,
        generation=spec.generation,
        gateway=spec.gateway.model_copy(update={"port": port}),
        routes=spec.routes,
        upstreams=tuple(_upstream(one) for one in standing),
    )


def _upstream(one: Standing) -> Upstream:
    spec = one.planned.spec
    return Upstream(
        name=one.server,
        instance=one.planned.instance,
        url=spec.url,
        model=spec.model,
        engine=spec.engine,
        bundle=spec.bundle,
        digest=one.planned.digest,
        state=one.state,
        retiring=one.retiring,
        slots=spec.slots,
        context=spec.context,
        health=spec.health,
        metrics=spec.metrics,
        restarts=one.restarts,
    )
