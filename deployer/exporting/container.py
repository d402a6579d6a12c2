"""What runs in a container: the engine's program, its arguments, and what it may do. Pure.

A llama.cpp bundle gets an image of its own, with the server out of the prebuilt wheel; other
engines, and llama.cpp with `--image`, run in an image that has the engine.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from deployer.engines import Portable
from deployer.errors import PlanError
from deployer.exporting import flags, sizing
from deployer.exporting.addresses import url
from deployer.exporting.deployment import Deployment
from deployer.recipe.addresses import on_loopback

MODELS = "/models"
"""Where the bundle lies in a container."""
SECRETS = "/run/secrets"
BASE = "python:3.11-slim-bookworm"
"""What the image of our own stands on: the Python of the lock, and a C++ library."""
OWN_SERVER = "xllamacpp"
EVERYWHERE = "0.0.0.0"
"""What a server listens on inside; who reaches it is decided by where its port is published."""
USER = 10001
"""The user and the group of the server; by number, since an image need not know a name."""
PROBE_TIMEOUT = 5
"""Seconds a health request may take."""
PIDS = 4096
"""Processes and threads; servers start some for each core and each connection."""
OPEN_PATHS = "vLLM asks for the key below /v1 alone: let a proxy in front pass nothing else.\n"
_SECRET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Container:
    """One server in a container.

    `image` has the engine; where `own` is set it is only the base of an image that we describe.
    `entrypoint` and `command` together are the argv; no entrypoint means the image's own. `options`
    is what our own image's server gets beside them. `python` is an interpreter of the image, for
    the health request; None where it may have none. `temporary` are the mount options of /tmp, the
    one place that can be written to. `shared_memory` is the size of /dev/shm, None for the default.
    `key_file` is the path of the file with the API keys.
    """

    image: str
    own: bool
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    env: Mapping[str, str]
    python: str | None
    options: tuple[str, ...] = ()
    temporary: str = "mode=1777"
    shared_memory: str | None = None
    key_file: str | None = None

    def health(self, port: int) -> tuple[str, ...] | None:
        """A program that ends with 0 once the server has loaded its model."""
        if self.python is None:
            return None
        # Not urllib: it would send the request to the proxy that a container may be given.
        code = (
            "import http.client as c; "
            f"h = c.HTTPConnection('127.0.0.1', {port}, timeout={PROBE_TIMEOUT}); "
            "h.request('GET', '/health'); raise SystemExit(h.getresponse().status != 200)"
        )
        return (self.python, "-c", code)


def container(deployment: Deployment) -> Container:
    """How a bundle is served in a container that publishes its port.

    Raises PlanError where there is no image for its engine, and where it would be open to all.
    """
    options = deployment.options
    _require_keys(deployment)
    start = replace(deployment, options=replace(options, host=EVERYWHERE)).start(MODELS)
    key_file = f"{SECRETS}/{options.key_secret}" if options.key_secret else None
    if deployment.manifest.engine == "llama.cpp":
        return _llama_cpp(deployment, start, key_file)
    image = options.image or start.image
    if image is None:
        raise PlanError(
            f"no public image of {deployment.manifest.engine} for the "
            f"{deployment.footprint.device.upper()} was checked",
            "Name one that has the engine with --image.",
        )
    return Container(
        image, False, _with_key(start, key_file), start.arguments, _env(start.env), "python3",
        # What is compiled at the first start is loaded from there as a library.
        temporary="mode=1777,exec",
        shared_memory="8g" if deployment.gpus > 1 else "1g",
        key_file=key_file,
    )  # fmt: skip


def _with_key(start: Portable, key_file: str | None) -> tuple[str, ...]:
    """The program; where there is a key, a shell puts it into the variable that it reads."""
    variable = start.key_variable
    if key_file is None:
        return start.program
    if variable is None:
        raise PlanError(
            f"{start.release} takes no API key from its environment",
            "Leave out --key-secret, and let nobody but a proxy with keys reach its port.",
        )
    script = f'set -e; {variable}=$(cat {key_file}); export {variable}; exec "$@"'
    return ("/bin/sh", "-c", script, "sh", *start.program)


def published(deployment: Deployment) -> str:
    """The address that clients use, and the server's port, as container tools publish it.

    Raises PlanError where the host is a name.
    """
    host, port = deployment.options.host, deployment.options.port
    address = "127.0.0.1" if host == "localhost" else host
    if not _is_address(address):
        raise PlanError(
            f"a container's port is published at an address, not at the name {host}",
            "Give the machine's IP address with --host.",
        )
    return f"{f'[{address}]' if ':' in address else address}:{port}:{port}"


def request(deployment: Deployment) -> str:
    """A command line that asks the server something, from the machine it runs on."""
    options = deployment.options
    secret = options.key_secret
    key = f'-H "Authorization: Bearer $(head -n 1 {secret})" ' if secret else ""
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32})
    endpoint = f"{url(options.host, options.port)}/v1/chat/completions"
    return f"curl {endpoint} {key}-H 'Content-Type: application/json' -d '{body}'"


def _llama_cpp(deployment: Deployment, start: Portable, key_file: str | None) -> Container:
    """The program of an image that has llama-server, else of our own image."""
    image, arguments = deployment.options.image, start.arguments
    if key_file:
        arguments += ("--api-key-file", key_file)
    if image is None:
        return _own(deployment, start, arguments, key_file)
    if flags.value(arguments, "--cache-ram") is None:
        arguments += _prompt_cache(deployment)
    # Public images do not agree on the program's folder; each starts it by itself.
    return Container(image, False, (), arguments, _env(start.env), None, key_file=key_file)


def _own(
    deployment: Deployment, start: Portable, arguments: tuple[str, ...], key_file: str | None
) -> Container:
    """Our image: its `llama-server` is the server that deployer itself starts."""
    if deployment.footprint.device != "cpu":
        raise PlanError(
            "the prebuilt llama.cpp server computes on the CPU, this bundle is for a GPU",
            "Name an image that has llama-server for the GPU with --image.",
        )
    drain = str(sizing.drain_seconds(deployment).value)
    more = ("--drain-timeout", drain, "--cors-origins", "localhost", *_prompt_cache(deployment))
    env = _env(start.env)
    return Container(BASE, True, start.program, arguments, env, "python", more, key_file=key_file)


def _prompt_cache(deployment: Deployment) -> tuple[str, ...]:
    """Bound the server's cache of old prompts, else 8 GiB, to half of what the limit leaves."""
    return ("--cache-ram", str(sizing.prompt_cache(deployment).value // sizing.MIB))


def _env(env: Mapping[str, str]) -> dict[str, str]:
    """With a home to write to, and a name for a user whom the image does not know."""
    return {"HOME": "/tmp", "USER": "server", **env}


def _require_keys(deployment: Deployment) -> None:
    secret, host = deployment.options.key_secret, deployment.options.host
    if secret is not None and not _SECRET.fullmatch(secret):
        raise PlanError(
            f"{secret!r} cannot be the name of a file with API keys",
            "Use letters, digits, dots, dashes and underscores in --key-secret.",
        )
    if secret is None and not on_loopback(host):
        raise PlanError(
            f"the server would answer everybody who reaches {host}",
            "Demand API keys with --key-secret NAME, or leave --host at 127.0.0.1.",
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
