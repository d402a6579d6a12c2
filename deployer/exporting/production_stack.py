"""vLLM production-stack: the values of its Helm chart. Pure.

The chart writes some of vLLM's arguments itself, from fields of their own; what it has no field for
goes to `extraArgs`. It accepts a field that it does not know and drops it, so the records here are
strict. It runs `vllm serve`, one pod a replica.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from deployer.errors import PlanError
from deployer.exporting import pod_templates, pods, sizing
from deployer.exporting.container import USER
from deployer.exporting.deployment import Deployment
from deployer.exporting.flags import flags, without
from deployer.exporting.kubernetes_objects import (
    ContainerSecurity,
    Label,
    Mount,
    PodSecurity,
    Port,
    Strategy,
    Variable,
    Volume,
)
from deployer.exporting.yaml_text import Path, Spec, document, file

CHART_GRACE = 30
"""Seconds between SIGTERM and SIGKILL in the chart's pods; it has no field for it."""
_BY_THE_CHART = (
    "--model", "--host", "--port", "--max-model-len", "--max-num-seqs", "--dtype",
    "--tensor-parallel-size", "--pipeline-parallel-size", "--gpu-memory-utilization",
    "--enable-prefix-caching", "--no-enable-prefix-caching",
    "--enable-chunked-prefill", "--no-enable-chunked-prefill", "--shutdown-timeout",
)  # fmt: skip
_Count = Annotated[int, Field(ge=1)]


class VllmConfig(Spec):
    """Arguments of vLLM that the chart has fields for; None leaves them to vLLM."""

    max_model_len: _Count
    max_num_seqs: _Count
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    tensor_parallel_size: Annotated[int, Field(ge=2)] | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    enable_prefix_caching: bool
    enable_chunked_prefill: bool
    extra_args: tuple[str, ...]


class HttpHealth(Spec):
    path: str
    port: Port


class StackProbe(Spec):
    """Times in seconds; the chart's own values are merged with it, so all of them are set."""

    initial_delay_seconds: Annotated[int, Field(ge=0)]
    period_seconds: _Count
    timeout_seconds: _Count
    failure_threshold: _Count
    http_get: HttpHealth


class StackSecurity(ContainerSecurity):
    """With the field that the chart's own values set to false."""

    run_as_non_root: bool = True


class ApiKey(Spec):
    secret_name: str
    secret_key: str


class ModelSpec(Spec):
    """One model, and what a replica of its server takes."""

    name: Label
    annotations: dict[str, str]
    pod_annotations: dict[str, str]
    repository: str
    tag: str
    model_url: str = Field(serialization_alias="modelURL")
    replica_count: _Count
    request_cpu: int = Field(ge=1, serialization_alias="requestCPU")
    request_memory: str
    limit_memory: str
    request_gpu: int = Field(ge=0, serialization_alias="requestGPU")
    shm_size: str | None = None
    vllm_config: VllmConfig
    env: tuple[Variable, ...]
    extra_volumes: tuple[Volume, ...]
    extra_volume_mounts: tuple[Mount, ...]


class EngineSpec(Spec):
    """`runtime_class_name` empty: none, where the chart's own value is nvidia."""

    container_port: Port
    runtime_class_name: Literal[""] | None = None
    vllm_api_key: ApiKey | None = None
    strategy: Strategy = Strategy()
    startup_probe: StackProbe
    readiness_probe: StackProbe
    liveness_probe: StackProbe
    security_context: PodSecurity
    container_security_context: StackSecurity
    model_spec: tuple[ModelSpec, ...]


class RouterSpec(Spec):
    vllm_api_key: ApiKey


class Values(Spec):
    serving_engine_spec: EngineSpec
    router_spec: RouterSpec | None = None


def render(deployment: Deployment) -> dict[str, str]:
    """values.yaml for `helm install`.

    Raises PlanError for another engine than vLLM, for a replica of several pods, and where the
    pods cannot find the bundle.
    """
    _check(deployment)
    of = pods.server(deployment)
    install = f"helm install {pods.name(deployment)} vllm/vllm-stack --values values.yaml"
    header = pods.header(of, "production-stack", install)
    return {"values.yaml": file(header, [document(_values(of), _notes(of))])}


def _check(deployment: Deployment) -> None:
    engine = deployment.manifest.engine
    if engine != "vllm":
        raise PlanError(
            f"production-stack runs vLLM, and this bundle is for {engine}",
            "Export it --to kubernetes, or several servers behind --to vllm-router.",
        )
    if deployment.serve.vllm.pipeline_parallel > 1:
        raise PlanError(
            "production-stack's chart runs a replica in one pod; serve.vllm.pipeline_parallel "
            "above 1 takes several",
            "Export it --to kubernetes, which writes a LeaderWorkerSet, or --to kserve.",
        )


def _values(of: pods.Server) -> Values:
    deployment = of.deployment
    key = deployment.options.key_secret
    secret = ApiKey(secret_name=key, secret_key=pods.KEY) if key else None
    start, ready, alive = _probes(of)
    return Values(
        serving_engine_spec=EngineSpec(
            container_port=deployment.options.port,
            runtime_class_name=None if of.gpus else "",
            vllm_api_key=secret,
            startup_probe=start,
            readiness_probe=ready,
            liveness_probe=alive,
            security_context=PodSecurity(run_as_user=USER, run_as_group=USER),
            container_security_context=StackSecurity(),
            model_spec=(_model(of),),
        ),
        router_spec=RouterSpec(vllm_api_key=secret) if secret else None,
    )


def _probes(of: pods.Server) -> tuple[StackProbe, StackProbe, StackProbe]:
    """Startup, readiness, liveness; the chart's liveness asks for health, so it is patient."""
    health = HttpHealth(path=of.start.health, port=of.deployment.options.port)
    often = StackProbe(
        initial_delay_seconds=0,
        period_seconds=sizing.PROBE_SECONDS,
        timeout_seconds=sizing.PROBE_SECONDS,
        failure_threshold=pods.READY_FAILURES,
        http_get=health,
    )
    start = sizing.startup_failures(of.deployment).value
    seldom = {
        "period_seconds": pods.ALIVE_SECONDS,
        "timeout_seconds": pods.ALIVE_TIMEOUT,
        "failure_threshold": pods.ALIVE_FAILURES,
    }
    return (
        often.model_copy(update={"failure_threshold": start}),
        often,
        often.model_copy(update=seldom),
    )


def _model(of: pods.Server) -> ModelSpec:
    deployment = of.deployment
    repository, tag = _split(of.image)
    shared = deployment.serve.vllm.tensor_parallel > 1
    by_the_chart = (pod_templates.SHM,) if shared else ()
    limit = pods.quantity(sizing.memory_limit(deployment).value)
    return ModelSpec(
        name=pods.name(deployment),
        annotations={
            "deployer/bundle": deployment.manifest.name,
            "deployer/engine": of.start.release,
            "deployer/figures": deployment.footprint.origin,
        },
        pod_annotations={"deployer/bundle-digest": deployment.manifest.digest},
        repository=repository,
        tag=tag,
        model_url=of.place.folder,
        replica_count=deployment.options.replicas,
        request_cpu=sizing.cpus(deployment).value,
        request_memory=pods.quantity(sizing.memory_request(deployment).value),
        limit_memory=limit,
        request_gpu=of.gpus,
        shm_size=limit if shared else None,
        vllm_config=_config(of),
        env=pod_templates.environment(of, with_key=False),
        extra_volumes=tuple(v for v in pod_templates.volumes(of) if v.name not in by_the_chart),
        extra_volume_mounts=tuple(
            m for m in pod_templates.mounts(of) if m.name not in by_the_chart
        ),
    )


def _config(of: pods.Server) -> VllmConfig:
    settings = of.deployment.serve.vllm
    return VllmConfig(
        max_model_len=of.deployment.serve.context,
        max_num_seqs=of.deployment.serve.parallel,
        dtype=None if settings.dtype == "auto" else settings.dtype,
        tensor_parallel_size=settings.tensor_parallel if settings.tensor_parallel > 1 else None,
        gpu_memory_utilization=settings.gpu_memory_utilization if of.gpus else None,
        enable_prefix_caching=settings.prefix_caching,
        enable_chunked_prefill=settings.chunked_prefill,
        extra_args=(*without(of.start.arguments, _BY_THE_CHART)[_positional(of) :], *_drain(of)),
    )


def _positional(of: pods.Server) -> int:
    """How many arguments stand before the first flag: the model, which is `modelURL`."""
    first = flags(of.start.arguments)[0]
    return 0 if first.name else len(first.values)


def _drain(of: pods.Server) -> tuple[str, ...]:
    return ("--shutdown-timeout", str(drain_seconds(of))) if of.drains else ()


def drain_seconds(of: pods.Server) -> int:
    """The recipe's drain, or what the chart's pods have time for where that is less."""
    end = sizing.stop_seconds(of.deployment).value + sizing.STOP_MARGIN
    return min(sizing.drain_seconds(of.deployment).value, CHART_GRACE - end)


def _split(image: str) -> tuple[str, str]:
    """A reference as the chart wants it, in two parts that it joins by a colon."""
    repository, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:
        raise PlanError(f"the image {image} has no tag", "Give --image NAME:TAG.")
    return repository, tag


def _notes(of: pods.Server) -> dict[Path, str]:
    deployment = of.deployment
    engine: Path = ("servingEngineSpec",)
    model: Path = (*engine, "modelSpec", 0)
    end = sizing.stop_seconds(deployment)
    return {
        (*engine, "startupProbe", "failureThreshold"): sizing.startup_failures(deployment).why,
        (*engine, "livenessProbe"): "seldom, and given up late: a busy server is not a dead one",
        (*model, "requestCPU"): sizing.cpus(deployment).why,
        (*model, "requestMemory"): sizing.memory_request(deployment).why,
        (*model, "limitMemory"): sizing.memory_limit(deployment).why,
        (*model, "vllmConfig", "extraArgs"): f"--shutdown-timeout: the chart ends a pod "
        f"{CHART_GRACE} s after SIGTERM; {drain_seconds(of)} s to drain (the recipe: "
        f"{sizing.drain_seconds(deployment).value} s), {end.value} s to end ({end.why})",
    }
