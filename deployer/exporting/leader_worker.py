"""LeaderWorkerSet: one replica of a model over several machines, a group of pods. Pure.

vLLM's stages of layers (`serve.vllm.pipeline_parallel`) go to one pod each, and a pod has as many
GPUs as share a layer (`tensor_parallel`). The first pod of a group listens to clients, the others
only compute. The controller tells each pod its number, the group's size and the leader's address.
"""

from __future__ import annotations

from pydantic import BaseModel

from deployer.errors import PlanError
from deployer.exporting import pod_templates, pods
from deployer.exporting.deployment import Deployment
from deployer.exporting.flags import without
from deployer.exporting.kubernetes_objects import (
    GroupTemplate,
    Labels,
    LeaderWorkerSet,
    LeaderWorkerSpec,
    Metadata,
)
from deployer.exporting.yaml_text import Path, under

LEADER: Labels = {"deployer/role": "leader"}
WORKER: Labels = {"deployer/role": "worker"}
MASTER_PORT = 29501
"""The port at which the pods of a group find the leader; vLLM's default."""
FIRST_RELEASE = (0, 12)
"""The first vLLM that computes on several machines without another program."""
_OF_THE_GROUP = (
    "--distributed-executor-backend", "mp",
    "--nnodes", "$(LWS_GROUP_SIZE)",
    "--node-rank", "$(LWS_WORKER_INDEX)",
    "--master-addr", "$(LWS_LEADER_ADDRESS)",
    "--master-port", str(MASTER_PORT),
)  # fmt: skip
_OF_THE_LEADER = ("--host", "--port")


def size(deployment: Deployment) -> int:
    """Pods that make one replica."""
    return deployment.serve.vllm.pipeline_parallel


def workload(of: pods.Server, metadata: Metadata) -> tuple[BaseModel, dict[Path, str]]:
    """The LeaderWorkerSet and its comments; raises PlanError where it cannot be."""
    _check(of)
    leader = pod_templates.serving_container(of)
    arguments = without(of.start.arguments, _OF_THE_LEADER)
    worker = pod_templates.computing_container(of, (*arguments, "--headless"))
    # Not before: these hold variables of the pod, which must not be taken literally.
    leader, worker = (
        made.model_copy(update={"args": (*made.args, *_OF_THE_GROUP)}) for made in (leader, worker)
    )
    group = GroupTemplate(
        size=of.together,
        leader_template=pod_templates.template(of, leader, LEADER),
        worker_template=pod_templates.template(of, worker, WORKER),
    )
    spec = LeaderWorkerSpec(replicas=of.deployment.options.replicas, leader_worker_template=group)
    return LeaderWorkerSet(metadata=metadata, spec=spec), _notes(of)


def _check(of: pods.Server) -> None:
    """Raise PlanError for a vLLM that cannot; that there are GPUs the engine has checked."""
    release = of.start.release.removeprefix("vllm ")
    numbers = tuple(int(part) for part in release.split(".")[:2] if part.isdigit())
    if numbers and numbers < FIRST_RELEASE:
        first = ".".join(map(str, FIRST_RELEASE))
        raise PlanError(
            f"vLLM {release} cannot compute on several machines by itself",
            f"Use {first} or a later one, or set serve.vllm.pipeline_parallel to 1.",
        )


def _notes(of: pods.Server) -> dict[Path, str]:
    """The comments of both templates; a worker has no probes and is sent no request."""
    container: Path = ("spec", "containers", 0)
    figures = {path: figure.why for path, figure in pods.figures(of).values()}
    shared = {
        path: f"{note}; that is the whole replica, and each of its pods gets as much"
        for path, note in figures.items()
        if path[-1] == "memory"
    }
    worker = {
        **shared,
        (*container, "lifecycle"): "it is told to end together with the leader, and goes on "
        "computing until the leader's requests are finished",
    }
    group: Path = ("spec", "leaderWorkerTemplate")
    return {
        **under((*group, "leaderTemplate"), {**pods.remarks(of), **shared}),
        **under((*group, "workerTemplate"), worker),
    }
