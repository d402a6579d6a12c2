"""A Compose file for one server, with the Dockerfile of its image where we describe it. Pure.

The models hold only the fields that are written: a misspelt one is an error here, while some
tools would drop it in silence.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from deployer.errors import PlanError
from deployer.exporting import places, sizing, yaml_text
from deployer.exporting.container import (
    MODELS,
    OPEN_PATHS,
    PIDS,
    PROBE_TIMEOUT,
    USER,
    Container,
    container,
    published,
    request,
)
from deployer.exporting.deployment import Deployment
from deployer.exporting.docker import PROBE_FAILURES, PROBE_INTERVAL, build_files, tag

FILE = "compose.yaml"
SERVICE = "server"
Seconds = Annotated[str, Field(pattern=r"^[0-9]+s$")]
Size = Annotated[str, Field(pattern=r"^[0-9]+[mg]$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Build(_Part):
    context: str
    target: str


class Create(_Part):
    """`create_host_path` false: a missing folder is an error, not an empty new one."""

    create_host_path: bool = False


class Mount(_Part):
    type: Literal["bind"] = "bind"
    source: str
    target: str
    read_only: bool = True
    bind: Create = Create()


class Secret(_Part):
    file: str


class Healthcheck(_Part):
    test: tuple[str, ...]
    interval: Seconds
    timeout: Seconds
    start_period: Seconds
    retries: Annotated[int, Field(ge=1)]


class Device(_Part):
    driver: Literal["nvidia"] = "nvidia"
    count: Annotated[int, Field(ge=1)]
    capabilities: tuple[str, ...] = ("gpu",)


class Reservations(_Part):
    devices: tuple[Device, ...]


class Resources(_Part):
    reservations: Reservations


class Deploy(_Part):
    resources: Resources


class Service(_Part):
    """One container. Sizes and times have their unit, as Compose wants it."""

    image: str
    build: Build | None = None
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...]
    environment: dict[str, str]
    user: str = f"{USER}:{USER}"
    ports: tuple[str, ...]
    volumes: tuple[Mount, ...]
    secrets: tuple[str, ...] | None = None
    healthcheck: Healthcheck | None = None
    restart: Literal["unless-stopped"] = "unless-stopped"
    stop_signal: Literal["SIGTERM"] = "SIGTERM"
    stop_grace_period: Seconds
    mem_limit: Size
    memswap_limit: Size
    cpus: Annotated[float, Field(gt=0)]
    pids_limit: int = PIDS
    read_only: bool = True
    tmpfs: tuple[str, ...]
    shm_size: Size | None = None
    cap_drop: tuple[str, ...] = ("ALL",)
    security_opt: tuple[str, ...] = ("no-new-privileges:true",)
    deploy: Deploy | None = None


class Compose(_Part):
    services: dict[str, Service]
    secrets: dict[str, Secret] | None = None


def render(deployment: Deployment) -> dict[str, str]:
    """compose.yaml, README.md, and what the image is built from where it is ours.

    Raises PlanError where there is no image for the engine, or where one service is not enough.
    """
    if deployment.options.replicas > 1:
        raise PlanError(
            "a Compose file runs one server, since its port can be published once",
            "Export to vllm-router or kubernetes for several replicas.",
        )
    made = container(deployment)
    return {
        FILE: _text(deployment, made),
        **(build_files(deployment, made) if made.own else {}),
        "README.md": _readme(deployment, made),
    }


def _text(deployment: Deployment, made: Container) -> str:
    manifest, secret = deployment.manifest, deployment.options.key_secret
    secrets = {secret: Secret(file=f"./{secret}")} if secret else None
    whole = Compose(services={SERVICE: _service(deployment, made)}, secrets=secrets)
    header = [
        f"Serves {manifest.name} (sha256:{manifest.digest}).",
        f"Made by deployer. Memory and times: {deployment.footprint.origin}.",
    ]
    plain = whole.model_dump(exclude_none=True)
    return yaml_text.file(header, [yaml_text.document(plain, _notes(deployment, made))])


def _service(deployment: Deployment, made: Container) -> Service:
    secret = deployment.options.key_secret
    memory = f"{sizing.memory_limit(deployment).value // sizing.MIB}m"
    return Service(
        image=f"{tag(deployment)}-server" if made.own else places.checked_reference(made.image),
        build=Build(context=".", target="server") if made.own else None,
        entrypoint=_literal(made.entrypoint) or None,
        command=_literal(made.command),
        environment=dict(zip(made.env, _literal(tuple(made.env.values())), strict=True)),
        ports=(published(deployment),),
        volumes=(Mount(source=_bundle_folder(deployment), target=MODELS),),
        secrets=(secret,) if secret else None,
        healthcheck=_healthcheck(deployment, made),
        stop_grace_period=f"{sizing.grace_seconds(deployment).value}s",
        mem_limit=memory,
        memswap_limit=memory,
        cpus=float(sizing.cpus(deployment).value),  # some parsers want a fraction
        tmpfs=(f"/tmp:{made.temporary}",),
        shm_size=made.shared_memory,
        deploy=_gpus(deployment),
    )


def _gpus(deployment: Deployment) -> Deploy | None:
    if not deployment.gpus:
        return None
    reserved = Reservations(devices=(Device(count=deployment.gpus),))
    return Deploy(resources=Resources(reservations=reserved))


def _healthcheck(deployment: Deployment, made: Container) -> Healthcheck | None:
    program = made.health(deployment.options.port)
    if program is None:
        return None
    return Healthcheck(
        test=("CMD", *_literal(program)),
        interval=f"{PROBE_INTERVAL}s",
        timeout=f"{PROBE_TIMEOUT}s",
        start_period=f"{sizing.startup_seconds(deployment).value}s",
        retries=PROBE_FAILURES,
    )


def _notes(deployment: Deployment, made: Container) -> dict[yaml_text.Path, str]:
    """Where each figure comes from, as a comment above it."""
    memory = sizing.memory_limit(deployment).why
    figures: dict[yaml_text.Path, str] = {
        ("mem_limit",): f"{memory}; no swap, which would only make a server slow",
        ("cpus",): sizing.cpus(deployment).why,
        ("stop_grace_period",): sizing.grace_seconds(deployment).why,
    }
    if made.python is not None:
        figures[("healthcheck", "start_period")] = sizing.startup_seconds(deployment).why
    if made.shared_memory is not None:
        figures[("shm_size",)] = "the server's processes talk through it; not measured"
    return yaml_text.under(("services", SERVICE), figures)


def _bundle_folder(deployment: Deployment) -> str:
    """The folder on the machine that runs it: what `--to tar` unpacks to, beside the file."""
    model = deployment.options.model
    if model is None:
        return f"./{deployment.manifest.full_name}"
    if "://" in model:
        raise PlanError(
            f"a Compose file takes the bundle from a folder, not from {model}",
            "Name the bundle's folder on the machine that runs it with --model, or leave it out.",
        )
    return model.replace("$", "$$") if model.startswith(("/", ".")) else f"./{model}"


def _literal(values: tuple[str, ...]) -> tuple[str, ...]:
    """Values in which Compose finds no variable to replace."""
    return tuple(value.replace("$", "$$") for value in values)


def _readme(deployment: Deployment, made: Container) -> str:
    manifest, folder = deployment.manifest, _bundle_folder(deployment)
    build = " --build" if made.own else ""
    return f"""# {manifest.name} with Docker Compose

Made by deployer from the bundle {manifest.name}, sha256:{manifest.digest}.
The comments in `{FILE}` say where memory and times come from.

1. Put the bundle's folder at `{folder}` (`deployer export --to tar` makes a tar that unpacks to
   that name). User {USER} must be able to read its files.
2. {_about_keys(deployment)}
3. Start it, and wait until it is healthy:

   ```
   docker compose up --detach{build} --wait
   ```

4. Ask it:

   ```
   {request(deployment)}
   ```

`docker compose stop` lets running requests finish.
"""


def _about_keys(deployment: Deployment) -> str:
    secret = deployment.options.key_secret
    if secret is None:
        return "No API key is asked for: the port is published on a loopback address alone."
    many = "one a line" if deployment.manifest.engine == "llama.cpp" else "one key, nothing else"
    told = f"Put the API keys into the file `{secret}` here ({many}), readable by user {USER}."
    return f"{told}\n   {OPEN_PATHS}".rstrip() if deployment.manifest.engine == "vllm" else told
