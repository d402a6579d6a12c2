"""The Kubernetes objects that are written, as strict records: only the fields that are used.

A misspelt field is an error here, while some cluster would silently drop it. None is left out.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from deployer.exporting.yaml_text import Spec

Label = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=1)]
Absolute = Annotated[str, Field(pattern=r"^/")]
Labels = dict[str, Annotated[str, Field(max_length=63)]]


class Metadata(Spec):
    """`name` is None in a pod template, which gets its name from what owns it."""

    name: Label | None = None
    namespace: Label | None = None
    labels: Labels | None = None
    annotations: dict[str, str] | None = None


class FieldRef(Spec):
    field_path: str


class KeyRef(Spec):
    name: str
    key: str


class ValueFrom(Spec):
    secret_key_ref: KeyRef | None = None
    field_ref: FieldRef | None = None


class Variable(Spec):
    """A variable of the environment: a value, or where it comes from."""

    name: str
    value: str | None = None
    value_from: ValueFrom | None = None


class ContainerPort(Spec):
    name: Label
    container_port: Port


class HttpGet(Spec):
    path: Absolute
    port: str


class TcpSocket(Spec):
    port: str


class Probe(Spec):
    """Times in seconds."""

    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    period_seconds: Seconds
    timeout_seconds: Seconds
    failure_threshold: Count


class Sleep(Spec):
    seconds: Seconds


class Handler(Spec):
    sleep: Sleep


class Lifecycle(Spec):
    pre_stop: Handler


class Capabilities(Spec):
    drop: tuple[str, ...]


class SeccompProfile(Spec):
    type: Literal["RuntimeDefault"] = "RuntimeDefault"


class PodSecurity(Spec):
    run_as_non_root: bool = True
    run_as_user: Annotated[int, Field(gt=0)]
    run_as_group: Annotated[int, Field(gt=0)]
    seccomp_profile: SeccompProfile = SeccompProfile()


class ContainerSecurity(Spec):
    allow_privilege_escalation: bool = False
    read_only_root_filesystem: bool = True
    capabilities: Capabilities = Capabilities(drop=("ALL",))


class Resources(Spec):
    """Quantities by resource: memory, cpu, nvidia.com/gpu."""

    requests: dict[str, str]
    limits: dict[str, str]


class Mount(Spec):
    name: Label
    mount_path: Absolute
    sub_path: str | None = None
    read_only: bool | None = None


class EmptyDir(Spec):
    medium: Literal["Memory"] | None = None


class Claim(Spec):
    claim_name: str
    read_only: bool = True


class ImageSource(Spec):
    reference: str
    pull_policy: Literal["IfNotPresent"] = "IfNotPresent"


class Volume(Spec):
    name: Label
    empty_dir: EmptyDir | None = None
    persistent_volume_claim: Claim | None = None
    image: ImageSource | None = None


class Container(Spec):
    name: Label
    image: str
    command: tuple[str, ...] | None = None
    args: tuple[str, ...]
    env: tuple[Variable, ...]
    ports: tuple[ContainerPort, ...] | None = None
    resources: Resources
    startup_probe: Probe | None = None
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None
    lifecycle: Lifecycle | None = None
    security_context: ContainerSecurity = ContainerSecurity()
    volume_mounts: tuple[Mount, ...]


class Selector(Spec):
    """Pods with these labels; without labels every pod."""

    match_labels: Labels | None = None


class TopologySpread(Spec):
    max_skew: Count = 1
    topology_key: str = "kubernetes.io/hostname"
    when_unsatisfiable: Literal["ScheduleAnyway"] = "ScheduleAnyway"
    label_selector: Selector


class PodSpec(Spec):
    service_account_name: Label
    automount_service_account_token: bool = False
    enable_service_links: bool = False
    termination_grace_period_seconds: Seconds
    security_context: PodSecurity
    topology_spread_constraints: tuple[TopologySpread, ...] | None = None
    containers: tuple[Container, ...]
    volumes: tuple[Volume, ...]


class PodTemplate(Spec):
    metadata: Metadata
    spec: PodSpec


class Namespace(Spec):
    api_version: Literal["v1"] = "v1"
    kind: Literal["Namespace"] = "Namespace"
    metadata: Metadata


class ServiceAccount(Spec):
    api_version: Literal["v1"] = "v1"
    kind: Literal["ServiceAccount"] = "ServiceAccount"
    metadata: Metadata
    automount_service_account_token: bool = False


class RollingUpdate(Spec):
    max_unavailable: Annotated[int, Field(ge=0)] = 0
    max_surge: Count = 1


class Strategy(Spec):
    type: Literal["RollingUpdate"] = "RollingUpdate"
    rolling_update: RollingUpdate = RollingUpdate()


class DeploymentSpec(Spec):
    replicas: Count
    revision_history_limit: Count = 5
    progress_deadline_seconds: Seconds
    strategy: Strategy = Strategy()
    selector: Selector
    template: PodTemplate


class Workload(Spec):
    """A Deployment; not named so, since `Deployment` is what every exporter is given."""

    api_version: Literal["apps/v1"] = "apps/v1"
    kind: Literal["Deployment"] = "Deployment"
    metadata: Metadata
    spec: DeploymentSpec


class ServicePort(Spec):
    name: Label
    port: Port
    target_port: str


class ServiceSpec(Spec):
    selector: Labels
    ports: tuple[ServicePort, ...]


class Service(Spec):
    api_version: Literal["v1"] = "v1"
    kind: Literal["Service"] = "Service"
    metadata: Metadata
    spec: ServiceSpec


class BudgetSpec(Spec):
    max_unavailable: Count
    selector: Selector


class DisruptionBudget(Spec):
    api_version: Literal["policy/v1"] = "policy/v1"
    kind: Literal["PodDisruptionBudget"] = "PodDisruptionBudget"
    metadata: Metadata
    spec: BudgetSpec


class PolicyPort(Spec):
    protocol: Literal["TCP", "UDP"] = "TCP"
    port: str | Port


class PolicyPeer(Spec):
    pod_selector: Selector


class Ingress(Spec):
    """Who may come, through which ports; None is everybody, and every port."""

    from_: tuple[PolicyPeer, ...] | None = Field(None, serialization_alias="from")
    ports: tuple[PolicyPort, ...] | None = None


class Egress(Spec):
    """Where to, through which ports; None is everywhere, and every port."""

    to: tuple[PolicyPeer, ...] | None = None
    ports: tuple[PolicyPort, ...] | None = None


class PolicySpec(Spec):
    pod_selector: Selector
    policy_types: tuple[Literal["Ingress", "Egress"], ...] = ("Ingress", "Egress")
    ingress: tuple[Ingress, ...]
    egress: tuple[Egress, ...]


class NetworkPolicy(Spec):
    api_version: Literal["networking.k8s.io/v1"] = "networking.k8s.io/v1"
    kind: Literal["NetworkPolicy"] = "NetworkPolicy"
    metadata: Metadata
    spec: PolicySpec


class LeaderUpdate(Spec):
    rolling_update_configuration: RollingUpdate = RollingUpdate()
    type: Literal["RollingUpdate"] = "RollingUpdate"


class GroupTemplate(Spec):
    """A group of pods: the leader, and `size` minus one workers."""

    size: Annotated[int, Field(ge=2)]
    restart_policy: Literal["RecreateGroupOnPodRestart"] = "RecreateGroupOnPodRestart"
    leader_template: PodTemplate
    worker_template: PodTemplate


class LeaderWorkerSpec(Spec):
    replicas: Count
    startup_policy: Literal["LeaderCreated"] = "LeaderCreated"
    rollout_strategy: LeaderUpdate = LeaderUpdate()
    leader_worker_template: GroupTemplate


class LeaderWorkerSet(Spec):
    api_version: Literal["leaderworkerset.x-k8s.io/v1"] = "leaderworkerset.x-k8s.io/v1"
    kind: Literal["LeaderWorkerSet"] = "LeaderWorkerSet"
    metadata: Metadata
    spec: LeaderWorkerSpec
