"""The pod that serves a bundle: container, probes, drain, resources, security. Pure.

The three probes ask different things. startup: has the model been loaded, within the time that the
measured start allows? readiness: does the server answer just now? liveness: is there still a
process that takes connections? A server that is merely busy must never be killed for it, so that
one asks only whether the port is open, seldom, and gives up late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deployer.exporting import places, pods, sizing
from deployer.exporting.container import USER
from deployer.exporting.flags import value
from deployer.exporting.kubernetes_objects import (
    Container,
    ContainerPort,
    EmptyDir,
    FieldRef,
    Handler,
    HttpGet,
    KeyRef,
    Labels,
    Lifecycle,
    Metadata,
    Mount,
    PodSecurity,
    PodSpec,
    PodTemplate,
    Probe,
    Resources,
    Selector,
    Sleep,
    TcpSocket,
    TopologySpread,
    ValueFrom,
    Variable,
    Volume,
)
from deployer.exporting.pods import Server
from deployer.exporting.sizing import MIB, PROBE_SECONDS

PORT_NAME, TMP, SHM = "http", "tmp", "shm"
"""Names of the port, and of the volumes for temporary files and for shared memory."""
GPU = "nvidia.com/gpu"


def template(of: Server, made: Container, extra_labels: Labels | None = None) -> PodTemplate:
    """The template of a pod with this one container."""
    deployment = of.deployment
    spread = TopologySpread(label_selector=Selector(match_labels=pods.labels(deployment)))
    return PodTemplate(
        metadata=Metadata(
            labels={**pods.all_labels(deployment), **(extra_labels or {})},
            annotations={"deployer/bundle-digest": deployment.manifest.digest},
        ),
        spec=PodSpec(
            service_account_name=pods.name(deployment),
            termination_grace_period_seconds=pods.grace(of).value,
            security_context=PodSecurity(run_as_user=USER, run_as_group=USER),
            topology_spread_constraints=(spread,) if deployment.options.replicas > 1 else None,
            containers=(made,),
            volumes=volumes(of),
        ),
    )


def serving_container(of: Server) -> Container:
    """The container that listens, with its probes."""
    arguments = (*of.start.arguments, *_bounded_cache(of))
    health = HttpGet(path=of.start.health, port=PORT_NAME)
    return Container(
        **_common(of, arguments),
        env=environment(of, with_key=True),
        ports=(ContainerPort(name=PORT_NAME, container_port=of.deployment.options.port),),
        startup_probe=Probe(
            http_get=health,
            period_seconds=PROBE_SECONDS,
            timeout_seconds=PROBE_SECONDS,
            failure_threshold=sizing.startup_failures(of.deployment).value,
        ),
        readiness_probe=Probe(
            http_get=health,
            period_seconds=PROBE_SECONDS,
            timeout_seconds=PROBE_SECONDS,
            failure_threshold=pods.READY_FAILURES,
        ),
        liveness_probe=Probe(
            tcp_socket=TcpSocket(port=PORT_NAME),
            period_seconds=pods.ALIVE_SECONDS,
            timeout_seconds=pods.ALIVE_TIMEOUT,
            failure_threshold=pods.ALIVE_FAILURES,
        ),
        lifecycle=Lifecycle(pre_stop=Handler(sleep=Sleep(seconds=pods.pre_stop(of).value))),
    )


def computing_container(of: Server, arguments: Sequence[str]) -> Container:
    """A container that only computes for another one, and listens to no client.

    It is told to end together with that one, and must not do so while requests still run there.
    """
    drain = sizing.drain_seconds(of.deployment).value
    return Container(
        **_common(of, arguments),
        env=environment(of, with_key=False),
        lifecycle=Lifecycle(pre_stop=Handler(sleep=Sleep(seconds=pods.PRE_STOP + drain))),
    )


def _bounded_cache(of: Server) -> tuple[str, ...]:
    """llama.cpp's cache of old prompts grows to 8 GiB by itself, far over the memory limit."""
    flag = "--cache-ram"
    given = value(of.start.arguments, flag)
    if of.deployment.manifest.engine != "llama.cpp" or given is not None:
        return ()
    return (flag, str(sizing.prompt_cache(of.deployment).value // MIB))


def _common(of: Server, arguments: Sequence[str]) -> dict[str, Any]:
    """What all containers have; an engine whose image starts it gets only the arguments."""
    return {
        "name": pods.SERVER,
        "image": of.image,
        "command": of.start.program if of.deployment.manifest.engine == "vllm" else None,
        "args": tuple(map(_literal, arguments)),
        "resources": resources(of),
        "volume_mounts": mounts(of),
    }


def environment(of: Server, with_key: bool) -> tuple[Variable, ...]:
    """The server's variables; `with_key` also the API key, out of the secret."""
    ours = {"HOME": "/tmp", "USER": pods.SERVER}  # its user has no entry in the image's passwd file
    env = {**ours, **of.start.env}
    found = [Variable(name=key, value=_literal(text)) for key, text in env.items()]
    if of.together > 1:
        own_address = ValueFrom(field_ref=FieldRef(field_path="status.podIP"))
        found.append(Variable(name="VLLM_HOST_IP", value_from=own_address))
    secret = of.deployment.options.key_secret
    if with_key and secret and of.start.key_variable:
        entry = places.checked_name(secret, "a secret")
        source = ValueFrom(secret_key_ref=KeyRef(name=entry, key=pods.KEY))
        found.append(Variable(name=of.start.key_variable, value_from=source))
    return tuple(found)


def resources(of: Server) -> Resources:
    """What the scheduler reserves, and what ends the server; never a limit of the processor."""
    deployment = of.deployment
    gpus = {GPU: str(of.gpus)} if of.gpus else {}
    return Resources(
        requests={
            "cpu": str(sizing.cpus(deployment, of.gpus).value),
            "memory": pods.quantity(sizing.memory_request(deployment).value),
            **gpus,
        },
        limits={"memory": pods.quantity(sizing.memory_limit(deployment).value), **gpus},
    )


def volumes(of: Server) -> tuple[Volume, ...]:
    """The bundle, a place for temporary files, and vLLM's shared memory."""
    found = [of.place.volume] if of.place.volume else []
    found.append(Volume(name=TMP, empty_dir=EmptyDir()))
    if _shares_memory(of):
        found.append(Volume(name=SHM, empty_dir=EmptyDir(medium="Memory")))
    return tuple(found)


def mounts(of: Server) -> tuple[Mount, ...]:
    """Where the volumes are in the container."""
    found = [of.place.mount] if of.place.mount else []
    found.append(Mount(name=TMP, mount_path="/tmp"))
    if _shares_memory(of):
        found.append(Mount(name=SHM, mount_path="/dev/shm"))
    return tuple(found)


def _shares_memory(of: Server) -> bool:
    """Whether several processes need more than the 64 MiB of shared memory a container has.

    What they use of it counts as the container's memory, so the memory limit bounds it.
    """
    return of.deployment.manifest.engine == "vllm"


def _literal(text: str) -> str:
    """`text` spelled so that Kubernetes does not take $(NAME) in it for a variable."""
    return text.replace("$(", "$$(")
