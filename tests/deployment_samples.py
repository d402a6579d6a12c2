"""Made-up specs and records of deployments, for tests: what they name is nowhere."""

from __future__ import annotations

import os

from deployer.deployments import DeploymentRecord, DeploymentSpec, Origin, PlannedServer
from deployer.deployments.state import DeployedRecord
from deployer.recipe.deployment import Gateway, Route
from deployer.serving.identity import start_mark
from deployer.serving.spec import Spec

Q4 = DeployedRecord(instance="chat.q4.1", state="ready", endpoint="e", bundle="b")


def record(**changed: object) -> DeploymentRecord:
    """The record of a deployment whose supervisor is this process."""
    mine = DeploymentRecord(
        name="chat", endpoint="http://127.0.0.1:8000", supervisor_pid=os.getpid(), gateway_pid=None,
        state="ready", generation=1, file=None, models=("smollm2",), keys=False, log="l",
        events="e", marks={"supervisor": start_mark(os.getpid())}, servers={"q4": Q4},
    )  # fmt: skip
    return mine.model_copy(update=changed)


def server_spec(name: str = "chat.q4.1", port: int = 9001) -> Spec:
    return Spec(
        name=name, engine="llama.cpp", server="xllamacpp", argv=("server", "--port", str(port)),
        url=f"http://127.0.0.1:{port}", port=port, model="smollm2-q4_0", bundle="/bundles/q4",
        slots=4, context=512, memory_bytes=1 << 28, ready_timeout=60.0, drain_timeout=60.0,
        drains=True, health="/health", metrics="/metrics",
    )  # fmt: skip


def planned(instance: str = "chat.q4.1", fingerprint: str = "f") -> PlannedServer:
    return PlannedServer(
        instance=instance, digest="d", fingerprint=fingerprint, spec=server_spec(instance)
    )


def deployment_spec(generation: int = 1, **servers: str) -> DeploymentSpec:
    """A deployment `chat`; `servers` are names of servers and of their processes."""
    named = servers or {"q4": "chat.q4.1"}
    return DeploymentSpec(
        name="chat",
        generation=generation,
        origin=Origin(file="/etc/chat.yaml"),
        gateway=Gateway(port=0),
        routes=(Route(model="smollm2", to={next(iter(named)): 1.0}),),
        servers={name: planned(instance) for name, instance in named.items()},
    )
