"""Kubernetes: one file with all that a bundle's server needs in a cluster. Pure.

A replica is one pod, and the replicas are a Deployment; where a replica takes several machines it
is a group of pods, and they are a LeaderWorkerSet.
"""

from __future__ import annotations

from pydantic import BaseModel

from deployer.exporting import leader_worker, places, pod_templates, pods
from deployer.exporting.deployment import Deployment
from deployer.exporting.kubernetes_objects import (
    BudgetSpec,
    DeploymentSpec,
    DisruptionBudget,
    Egress,
    Ingress,
    Metadata,
    Namespace,
    NetworkPolicy,
    PolicyPeer,
    PolicyPort,
    PolicySpec,
    Selector,
    Service,
    ServiceAccount,
    ServicePort,
    ServiceSpec,
    Workload,
)
from deployer.exporting.sizing import startup_seconds
from deployer.exporting.yaml_text import Path, document, file, under

PROGRESS_MARGIN = 300
"""Seconds beside the start: to find a node, to pull the image and the bundle."""
DNS = 53


def render(deployment: Deployment) -> dict[str, str]:
    """NAME.yaml: Namespace where asked for, ServiceAccount, Deployment or LeaderWorkerSet, and
    Service, PodDisruptionBudget, NetworkPolicy.

    Raises PlanError where the engine has no public program, where no image of it is known, and
    where the pods cannot find the bundle.
    """
    of = pods.server(deployment, leader_worker.size(deployment))
    metadata = _metadata(of.deployment)
    annotated = _annotated(of, metadata)
    made = leader_worker.workload(of, annotated) if of.together > 1 else _workload(of, annotated)
    documents = [
        *_namespace(deployment),
        document(ServiceAccount(metadata=metadata)),
        document(*made),
        document(_service(of.deployment, metadata)),
        document(_budget(of.deployment, metadata)),
        document(_policy(of.deployment, metadata), _policy_notes(of.deployment)),
    ]
    return {f"{pods.name(deployment)}.yaml": file(_header(of), documents)}


def _header(of: pods.Server) -> list[str]:
    lines = pods.header(of, "kubernetes", f"kubectl apply -f {pods.name(of.deployment)}.yaml")
    if of.together > 1:
        lines.append("The cluster must have the LeaderWorkerSet controller.")
    return lines


def _metadata(deployment: Deployment) -> Metadata:
    space = deployment.options.namespace
    return Metadata(
        name=pods.name(deployment),
        namespace=places.checked_name(space, "a namespace") if space else None,
        labels=pods.all_labels(deployment),
    )


def _annotated(of: pods.Server, metadata: Metadata) -> Metadata:
    """With what the file's comments say, since a cluster keeps no comments."""
    deployment = of.deployment
    told = {
        "deployer/bundle": deployment.manifest.name,
        "deployer/bundle-digest": deployment.manifest.digest,
        "deployer/engine": of.start.release,
        "deployer/figures": deployment.footprint.origin,
        **{f"deployer/{name}": figure.why for name, (_, figure) in pods.figures(of).items()},
    }
    return metadata.model_copy(update={"annotations": told})


def _namespace(deployment: Deployment) -> list[str]:
    name = deployment.options.namespace
    return [document(Namespace(metadata=Metadata(name=name)))] if name else []


def _workload(of: pods.Server, metadata: Metadata) -> tuple[BaseModel, dict[Path, str]]:
    deployment = of.deployment
    start = startup_seconds(deployment)
    spec = DeploymentSpec(
        replicas=deployment.options.replicas,
        progress_deadline_seconds=start.value + PROGRESS_MARGIN,
        selector=Selector(match_labels=pods.labels(deployment)),
        template=pod_templates.template(of, pod_templates.serving_container(of)),
    )
    notes = {
        ("spec", "progressDeadlineSeconds"): f"{start.value} s to start ({start.why}), and "
        f"{PROGRESS_MARGIN} s to find a node and to pull the image and the bundle",
        ("spec", "strategy"): "a new pod is ready before an old one ends; that needs room for one "
        "more",
        **under(("spec", "template"), pods.remarks(of)),
    }
    return Workload(metadata=metadata, spec=spec), notes


def _service(deployment: Deployment, metadata: Metadata) -> Service:
    """In front of the pods that answer; in front of the leaders where a replica is a group."""
    selector = pods.labels(deployment)
    if leader_worker.size(deployment) > 1:
        selector = {**selector, **leader_worker.LEADER}
    port = ServicePort(
        name=pod_templates.PORT_NAME,
        port=deployment.options.port,
        target_port=pod_templates.PORT_NAME,
    )
    return Service(metadata=metadata, spec=ServiceSpec(selector=selector, ports=(port,)))


def _budget(deployment: Deployment, metadata: Metadata) -> DisruptionBudget:
    """One pod at a time may be moved away; a single one too, so that nodes can be drained."""
    selector = Selector(match_labels=pods.labels(deployment))
    return DisruptionBudget(
        metadata=metadata, spec=BudgetSpec(max_unavailable=1, selector=selector)
    )


def _policy(deployment: Deployment, metadata: Metadata) -> NetworkPolicy:
    """Who may connect to the port, and that the server connects to nobody.

    The pods of a group reach each other, and ask for each other's address.
    """
    ours = Selector(match_labels=pods.labels(deployment))
    namespace = (PolicyPeer(pod_selector=Selector()),)
    clients = Ingress(
        from_=namespace if _closed(deployment) else None,
        ports=(PolicyPort(port=pod_templates.PORT_NAME),),
    )
    if leader_worker.size(deployment) == 1:
        spec = PolicySpec(pod_selector=ours, ingress=(clients,), egress=())
    else:
        group = (PolicyPeer(pod_selector=ours),)
        names = (PolicyPort(protocol="UDP", port=DNS), PolicyPort(port=DNS))
        spec = PolicySpec(
            pod_selector=ours,
            ingress=(clients, Ingress(from_=group)),
            egress=(Egress(to=group), Egress(ports=names)),
        )
    return NetworkPolicy(metadata=metadata, spec=spec)


def _closed(deployment: Deployment) -> str | None:
    """Why only pods of the same namespace may connect; None where everybody may."""
    if deployment.options.key_secret is None:
        return (
            "no API key is asked for, so only pods of this namespace may connect; --key-secret "
            "asks for one"
        )
    if deployment.manifest.engine == "vllm":
        return (
            "vLLM asks for the key below /v1 alone, so only pods of this namespace may connect: "
            "what lets others in must let them in to /v1 alone"
        )
    return None


def _policy_notes(deployment: Deployment) -> dict[Path, str]:
    why = _closed(deployment)
    return {("spec", "ingress", 0): why} if why else {}
