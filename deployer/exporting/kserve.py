"""KServe: an LLMInferenceService, which KServe turns into pods, a route and a group's wiring. Pure.

KServe's presets start `vllm serve` themselves: the name, the port, TLS, and for several pods the
group's settings. They hand further arguments through a shell, so only plain words go there. Its
probes are kept, but for their times.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field

from deployer.errors import PlanError
from deployer.exporting import places, pod_templates, pods, sizing
from deployer.exporting.deployment import Deployment
from deployer.exporting.flags import Flag, flags
from deployer.exporting.kubernetes_objects import Count, Metadata, Resources, Seconds, Variable
from deployer.exporting.yaml_text import Path, Spec, document, file, under

CONTAINER = "main"
"""The container of KServe's presets that ours is merged into."""
SCHEMES = ("oci", "oci+native", "pvc", "hf", "s3")
_BY_KSERVE = frozenset({
    "--model", "--served-model-name", "--host", "--port", "--pipeline-parallel-size",
})  # fmt: skip
_BY_THE_PRESET = ("HOME", "USER")
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


class Model(Spec):
    uri: str
    name: str


class Route(Spec):
    """Empty: KServe's own route."""


class Router(Spec):
    route: Route = Route()


class Parallelism(Spec):
    """GPUs that share a layer, and pods that hold consecutive layers."""

    tensor: Count | None = None
    pipeline: Annotated[int, Field(ge=2)]


class Times(Spec):
    """Of a probe whose question is KServe's; in seconds."""

    period_seconds: Seconds
    timeout_seconds: Seconds
    failure_threshold: Count


class MainContainer(Spec):
    """What is merged into the preset's container of this name."""

    name: Literal["main"] = "main"
    image: str
    args: tuple[str, ...]
    env: tuple[Variable, ...]
    resources: Resources
    startup_probe: Times | None = None
    readiness_probe: Times | None = None
    liveness_probe: Times | None = None


class MainPod(Spec):
    termination_grace_period_seconds: Seconds
    containers: tuple[MainContainer, ...]


class ServiceSpec(Spec):
    model: Model
    replicas: Count
    router: Router = Router()
    parallelism: Parallelism | None = None
    template: MainPod
    worker: MainPod | None = None


class LLMInferenceService(Spec):
    api_version: Literal["serving.kserve.io/v1alpha2"] = "serving.kserve.io/v1alpha2"
    kind: Literal["LLMInferenceService"] = "LLMInferenceService"
    metadata: Metadata
    spec: ServiceSpec


def render(deployment: Deployment) -> dict[str, str]:
    """NAME.yaml with an LLMInferenceService.

    Raises PlanError for another engine than vLLM, without a model's address, and for arguments
    that KServe's presets cannot hand on.
    """
    _check(deployment)
    of = pods.serving(deployment, places.Place("/mnt/models"), _group(deployment))
    service = LLMInferenceService(metadata=_metadata(of), spec=_spec(of))
    name = pods.name(deployment)
    header = pods.header(of, "kserve", f"kubectl apply -f {name}.yaml")
    return {f"{name}.yaml": file(header, [document(service, _notes(of))])}


def _check(deployment: Deployment) -> None:
    engine = deployment.manifest.engine
    if engine != "vllm":
        raise PlanError(
            f"KServe's LLMInferenceService starts vLLM, and this bundle is for {engine}",
            "Export it --to kubernetes.",
        )
    scheme, found, rest = (deployment.options.model or "").partition("://")
    if scheme not in SCHEMES or not found or not _PLAIN.fullmatch(rest):
        raise PlanError(
            "KServe must know where the bundle is",
            "Give --model oci://REGISTRY/NAME:TAG (a pushed OCI layout) or --model "
            "pvc://CLAIM/PATH.",
        )


def _group(deployment: Deployment) -> int:
    """Pods of one replica."""
    return deployment.serve.vllm.pipeline_parallel


def _metadata(of: pods.Server) -> Metadata:
    deployment = of.deployment
    space = deployment.options.namespace
    return Metadata(
        name=pods.name(deployment),
        namespace=places.checked_name(space, "a namespace") if space else None,
        labels=pods.all_labels(deployment),
        annotations={
            "deployer/bundle": deployment.manifest.name,
            "deployer/bundle-digest": deployment.manifest.digest,
            "deployer/engine": of.start.release,
            "deployer/figures": deployment.footprint.origin,
        },
    )


def _spec(of: pods.Server) -> ServiceSpec:
    deployment = of.deployment
    grouped = of.together > 1
    return ServiceSpec(
        model=Model(uri=str(deployment.options.model), name=deployment.manifest.name),
        replicas=deployment.options.replicas,
        parallelism=_parallelism(of) if grouped else None,
        template=_pod(of, _leader(of)),
        worker=_pod(of, _worker(of)) if grouped else None,
    )


def _parallelism(of: pods.Server) -> Parallelism:
    tensor = of.deployment.serve.vllm.tensor_parallel
    return Parallelism(tensor=tensor if tensor > 1 else None, pipeline=of.together)


def _pod(of: pods.Server, container: MainContainer) -> MainPod:
    grace = sizing.grace_seconds(of.deployment)
    return MainPod(termination_grace_period_seconds=grace.value, containers=(container,))


def _leader(of: pods.Server) -> MainContainer:
    often = Times(
        period_seconds=sizing.PROBE_SECONDS,
        timeout_seconds=sizing.PROBE_SECONDS,
        failure_threshold=pods.READY_FAILURES,
    )
    start = sizing.startup_failures(of.deployment).value
    return MainContainer(
        **_common(of, with_key=True),
        startup_probe=often.model_copy(update={"failure_threshold": start}),
        readiness_probe=often,
        liveness_probe=Times(
            period_seconds=pods.ALIVE_SECONDS,
            timeout_seconds=pods.ALIVE_TIMEOUT,
            failure_threshold=pods.ALIVE_FAILURES,
        ),
    )


def _worker(of: pods.Server) -> MainContainer:
    return MainContainer(**_common(of, with_key=False))


def _common(of: pods.Server, with_key: bool) -> dict[str, Any]:
    env = pod_templates.environment(of, with_key)
    return {
        "image": of.image,
        "args": arguments(of.start.arguments),
        "env": tuple(variable for variable in env if variable.name not in _BY_THE_PRESET),
        "resources": pod_templates.resources(of),
    }


def arguments(given: tuple[str, ...]) -> tuple[str, ...]:
    """vLLM's arguments but for KServe's own, each `--flag=value` one plain word.

    An object in JSON becomes one argument a key, `--flag.key=value`, which vLLM reads alike.
    Raises PlanError for what a shell would change.
    """
    words = [
        word
        for flag in flags(given)
        if flag.name and flag.name not in _BY_KSERVE
        for word in _plain(flag)
    ]
    for word in words:
        if not _PLAIN.fullmatch(word):
            raise PlanError(
                f"KServe's presets would not hand on {word!r} as it is",
                "Leave it out of serve.extra_args, or export the bundle --to kubernetes.",
            )
    return tuple(words)


def _plain(flag: Flag) -> list[str]:
    if not flag.values:
        return [flag.name]
    if len(flag.values) > 1:
        return [flag.name, *flag.values]
    (text,) = flag.values
    if text.startswith("{"):
        return [f"{flag.name}{key}={value}" for key, value in _dotted(json.loads(text))]
    return [f"{flag.name}={text}"]


def _dotted(value: object) -> list[tuple[str, str]]:
    """The leaves of a JSON object: `.outer.inner` and the value, spelled as JSON but for text."""
    if not isinstance(value, dict):
        return [
            (
                "",
                value
                if isinstance(value, str) and not _reads_as_json(value)
                else json.dumps(value),
            )
        ]
    return [
        (f".{key}{below}", leaf) for key, item in value.items() for below, leaf in _dotted(item)
    ]


def _reads_as_json(text: str) -> bool:
    """Whether vLLM would take a text for something else, such as a number."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _notes(of: pods.Server) -> dict[Path, str]:
    deployment = of.deployment
    main: Path = ("containers", 0)
    resources = {
        (*main, "resources", "requests", "cpu"): sizing.cpus(deployment).why,
        (*main, "resources", "requests", "memory"): sizing.memory_request(deployment).why,
        (*main, "resources", "limits", "memory"): sizing.memory_limit(deployment).why,
    }
    grace: dict[Path, str] = {
        ("terminationGracePeriodSeconds",): sizing.grace_seconds(deployment).why
    }
    leader = {
        **grace,
        **resources,
        (*main, "startupProbe", "failureThreshold"): sizing.startup_failures(deployment).why,
        (*main, "livenessProbe"): "seldom, and given up late: a busy server is not a dead one",
    }
    worker = under(("spec", "worker"), {**grace, **resources}) if of.together > 1 else {}
    return {**under(("spec", "template"), leader), **worker}
