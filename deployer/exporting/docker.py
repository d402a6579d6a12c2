"""A Dockerfile for a serving image, with all that its build needs but the bundle. Pure.

The Dockerfile has two targets: `server` without the model, which is then mounted, and `bundled`
with it. The bundle is a build context of its own, so it is never copied beside the Dockerfile.
"""

from __future__ import annotations

import json
from importlib import resources

from deployer.errors import PlanError
from deployer.exporting import places, sizing
from deployer.exporting.container import (
    MODELS,
    OPEN_PATHS,
    OWN_SERVER,
    PIDS,
    PROBE_TIMEOUT,
    USER,
    Container,
    container,
    published,
    request,
)
from deployer.exporting.deployment import Deployment

SERVER_FOLDER = "/opt/llama-server"
WORKER = "serve_xllamacpp.py"
LOCK = "llama-cpp.txt"
REQUIREMENTS = "requirements.txt"
LAUNCHER = "llama-server"
OPENMP = "libgomp.so.1"
PROBE_INTERVAL, PROBE_FAILURES = 10, 3


def render(deployment: Deployment) -> dict[str, str]:
    """Dockerfile, .dockerignore, README.md, and the files that the Dockerfile copies.

    Raises PlanError where there is no image for the bundle's engine.
    """
    if deployment.options.model is not None:
        raise PlanError(
            "an image gets the bundle when it is built or when it runs",
            "Leave out --model; the exported README.md says how to name the bundle.",
        )
    made = container(deployment)
    return {**build_files(deployment, made), "README.md": _readme(deployment, made)}


def build_files(deployment: Deployment, made: Container) -> dict[str, str]:
    """What `docker build` reads."""
    copied = _copied(made) if made.own else {}
    return {
        "Dockerfile": _dockerfile(deployment, made),
        ".dockerignore": "\n".join(["*", *(f"!{name}" for name in copied)]) + "\n",
        **copied,
    }


def tag(deployment: Deployment) -> str:
    """What the image is called: the bundle's name and the beginning of its digest."""
    return f"{deployment.label}:{deployment.manifest.digest[:12]}"


def _copied(made: Container) -> dict[str, str]:
    """The files of our own image: package data of deployer, and the program that starts them."""
    package = resources.files("deployer")
    lock = package.joinpath("toolchains", "locks", LOCK).read_text(encoding="utf-8")
    options = " ".join(made.options)
    return {
        REQUIREMENTS: _requirement(lock, "xllamacpp"),
        LAUNCHER: "#!/bin/sh\n"
        "# llama.cpp's server out of the xllamacpp wheel; takes llama-server's arguments.\n"
        f'exec python -I {SERVER_FOLDER}/{WORKER} {options} "$@"\n',
        WORKER: package.joinpath("workers", WORKER).read_text(encoding="utf-8"),
    }


def _requirement(lock: str, package: str) -> str:
    """One package's lines of a lock, hashes included; the server needs no other package."""
    lines = lock.splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith(f"{package}==")]
    last = first
    while lines[last].endswith("\\"):
        last += 1
    return "\n".join(lines[first : last + 1]) + "\n"


def _dockerfile(deployment: Deployment, made: Container) -> str:
    manifest = deployment.manifest
    blocks = [
        [
            f"# Serves {manifest.name} (sha256:{manifest.digest}).",
            "# Made by deployer; README.md says how to build and run it.",
            f"ARG BASE={places.checked_reference(made.image)}",
            "FROM ${BASE} AS server",
        ],
        _installation() if made.own else [],
        [f"ENV {name}={_quoted(value)}" for name, value in made.env.items()],
        [
            f"USER {USER}:{USER}",
            f"EXPOSE {deployment.options.port}",
            # The server finishes running requests after it; `docker stop` must wait for that.
            "STOPSIGNAL SIGTERM",
            *_health(deployment, made),
            *([f"ENTRYPOINT {json.dumps(made.entrypoint)}"] if made.entrypoint else []),
            f"CMD {json.dumps(made.command)}",
        ],
        [
            "# With the model: the files of the build context named `bundle`.",
            "FROM server AS bundled",
            f"LABEL org.opencontainers.image.title={_quoted(manifest.name)} \\",
            f"      org.opencontainers.image.version={_quoted(manifest.digest[:12])} \\",
            f"      deployer.bundle.digest={_quoted('sha256:' + manifest.digest)}",
            f"COPY --from=bundle . {MODELS}/",
        ],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _installation() -> list[str]:
    """Install the one wheel of the lock; nothing is compiled, and its hash must match.

    It needs GCC's OpenMP library, which slim images of Python do not have.
    """
    return [
        f"RUN python -c \"import ctypes; ctypes.CDLL('{OPENMP}')\" 2>/dev/null \\",
        "    || { apt-get update && apt-get install --yes --no-install-recommends libgomp1 \\",
        "         && rm -rf /var/lib/apt/lists/*; }",
        f"COPY {REQUIREMENTS} {WORKER} {SERVER_FOLDER}/",
        "# An index of your own: --secret id=pip,src=FILE with a pip.conf; it stays out of the "
        "image.",
        "RUN --mount=type=secret,id=pip,target=/etc/pip.conf \\",
        "    python -m pip install --no-cache-dir --disable-pip-version-check \\",
        "      --root-user-action=ignore --no-deps --only-binary=:all: --require-hashes \\",
        f"      -r {SERVER_FOLDER}/{REQUIREMENTS}",
        f"COPY --chmod=0755 {LAUNCHER} /usr/local/bin/{LAUNCHER}",
    ]


def _health(deployment: Deployment, made: Container) -> list[str]:
    program = made.health(deployment.options.port)
    if program is None:
        return []
    start = sizing.startup_seconds(deployment)
    return [
        f"# start-period: {start.why}",
        f"HEALTHCHECK --interval={PROBE_INTERVAL}s --timeout={PROBE_TIMEOUT}s "
        f"--start-period={start.value}s --retries={PROBE_FAILURES} \\",
        f"  CMD {json.dumps(program)}",
    ]


def _quoted(value: str) -> str:
    """A value of ENV or LABEL, which would else be cut at spaces and have its $NAMES replaced."""
    if "\n" in value:
        raise PlanError("a Dockerfile cannot hold a value of several lines", "Remove it.")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'


def _readme(deployment: Deployment, made: Container) -> str:
    manifest, name = deployment.manifest, tag(deployment)
    run = " \\\n  ".join(["docker run --detach", *_run_options(deployment, made)])
    mounted = f"--mount type=bind,source=BUNDLE,target={MODELS},readonly"
    return f"""# {manifest.name} in a container

Made by deployer from the bundle {manifest.name}, sha256:{manifest.digest}.
{_what(deployment, made)}

## Build

With the model in the image; BUNDLE is the bundle's folder, and this folder is the current one:

```
docker build --build-context bundle=BUNDLE --tag {name} .
```

Without it, to mount the bundle when it runs:

```
docker build --target server --tag {deployment.label}:server .
```

`podman build` and `buildah build` take the same options; with them, `--format docker` keeps the
health check. Another base image: `--build-arg BASE=IMAGE`.

## Run

```
{run} \\
  {name}
```

The image without the model is run with `{mounted}` as well.
The bundle's files must be readable by user {USER}. Once the server is healthy, ask it:

```
{request(deployment)}
```

| option | value | where it comes from |
|---|---|---|
{_figures(deployment)}

`docker stop` sends SIGTERM: the server takes no new requests and finishes the running ones.
{_keys(deployment, made)}"""


def _what(deployment: Deployment, made: Container) -> str:
    footprint = deployment.footprint
    if not made.own:
        return f"The server is that of the image {made.image}."
    told = "The server is llama.cpp's own, out of the xllamacpp wheel that deployer is locked to."
    if footprint.measured and footprint.server != OWN_SERVER:
        told += f" The figures below were measured with {footprint.server} instead."
    return told


def _run_options(deployment: Deployment, made: Container) -> list[str]:
    """Options of `docker run`, in words that podman knows too."""
    options, memory = deployment.options, sizing.memory_limit(deployment).value // sizing.MIB
    found = [
        f"--name {deployment.label}",
        f"--publish {published(deployment)}",
        f"--memory {memory}m --memory-swap {memory}m",
        f"--cpus {sizing.cpus(deployment).value}",
        f"--stop-timeout {sizing.grace_seconds(deployment).value}",
        f"--cap-drop ALL --security-opt no-new-privileges --pids-limit {PIDS}",
        f"--read-only --tmpfs /tmp:{made.temporary}",
    ]
    if made.shared_memory:
        found.append(f"--shm-size {made.shared_memory}")
    if deployment.gpus:
        found.append(f"--gpus {deployment.gpus}")
    if made.key_file:
        source = f'"$PWD"/{options.key_secret}'
        found.append(f"--mount type=bind,source={source},target={made.key_file},readonly")
    return found


def _figures(deployment: Deployment) -> str:
    memory = sizing.memory_limit(deployment)
    rows = [
        ("`--memory`", f"{memory.value // sizing.MIB} MiB", memory),
        ("`--cpus`", "{value}", sizing.cpus(deployment)),
        ("`--stop-timeout`", "{value} s", sizing.grace_seconds(deployment)),
        ("start period of the health check", "{value} s", sizing.startup_seconds(deployment)),
    ]
    return "\n".join(
        f"| {option} | {shown.format(value=figure.value)} | {figure.why} |"
        for option, shown, figure in rows
    )


def _keys(deployment: Deployment, made: Container) -> str:
    if made.key_file is None:
        return "\nNo API key is asked for, so publish the port on a loopback address alone.\n"
    secret = deployment.options.key_secret
    many = "one a line" if deployment.manifest.engine == "llama.cpp" else "one key and nothing else"
    return f"""
The API keys are in the file `{secret}` ({many}), which user {USER} must be able to
read. It is mounted; no key is part of the image, of its variables or of an argument.
{OPEN_PATHS if deployment.manifest.engine == "vllm" else ""}"""
