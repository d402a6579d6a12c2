"""vllm-router: several servers of one bundle on one machine, behind one address. Pure.

Two scripts: one starts the servers, each on processor cores (or GPUs) that no other uses, the
other the router. Servers that share their cores are slower together than one alone.
"""

from __future__ import annotations

import shlex

from deployer.errors import PlanError
from deployer.exporting.addresses import require_folder, url
from deployer.exporting.deployment import Deployment
from deployer.recipe.addresses import on_loopback

RELEASE = "0.1.17"
"""The release of the PyPI package vllm-router whose flags these are."""
LOOPBACK = "127.0.0.1"
POLICY = "cache_aware"
HEALTH_SECONDS = 2
HEALTH_FAILURES = 2
RETRIES = 5
BREAKER_FAILURES = 3
BREAKER_SECONDS = 10


def render(deployment: Deployment) -> dict[str, str]:
    """Two scripts and a README; file name -> content. Raises PlanError for what cannot be."""
    _check(deployment)
    return {
        "start-replicas.sh": _replicas(deployment),
        "start-router.sh": _router(deployment),
        "README.md": _readme(deployment),
    }


def _check(deployment: Deployment) -> None:
    options = deployment.options
    if options.replicas < 2:
        raise PlanError(
            "a router needs two servers or more", "Say how many, for example --replicas 2."
        )
    require_folder(options)
    if not on_loopback(options.host):
        raise PlanError(
            f"the router on {options.host} could be reached from other machines, and it asks "
            "nobody for a key",
            "Leave it on 127.0.0.1, and put a proxy with keys and TLS in front of it.",
        )


def _names(deployment: Deployment) -> list[str]:
    return [f"{deployment.label}-{number}" for number in range(1, deployment.options.replicas + 1)]


def _ports(deployment: Deployment) -> list[int]:
    """The servers' ports: those behind the router's."""
    first = deployment.options.port + 1
    return list(range(first, first + deployment.options.replicas))


def _replicas(deployment: Deployment) -> str:
    options = deployment.options
    bundle = shlex.quote(options.model or deployment.manifest.name)
    starts = "\n".join(
        f'start {number} {name} {port}{_gpus_of(deployment, number)} "$@"'
        for number, (name, port) in enumerate(
            zip(_names(deployment), _ports(deployment), strict=True)
        )
    )
    place = _ON_GPUS if deployment.gpus else _ON_CORES
    unset = "".join(f" --set {each}" for each in deployment.unplaced)
    place = place.replace(' "$@"\n}', f'{unset} "$@"\n}}')
    return f"""#!/bin/sh
# Starts {options.replicas} servers of {deployment.manifest.name}, one after the other, each on
# {"GPUs" if deployment.gpus else "cores"} of its own. Arguments go to every `deployer serve`.
# Made by `deployer export --to vllm-router` for the bundle {deployment.manifest.digest[:12]}.
set -eu

REPLICAS={options.replicas}
{place.replace("BUNDLE", bundle)}
{starts}
"""


_ON_CORES = r"""
# The processors of replica $1, as 0,1,4,5: whole physical cores, those of one socket together.
cores_of() {
    lscpu --online --parse=SOCKET,CORE,CPU | grep -v '^#' | sort -t, -k1,1n -k2,2n -k3,3n |
        awk -F, -v n="$REPLICAS" -v i="$1" '
            !(($1, $2) in seen) { seen[$1, $2] = cores++ }
            { core[NR] = seen[$1, $2]; cpu[NR] = $3 }
            END {
                for (line = 1; line <= NR; line++)
                    if (int(core[line] * n / cores) == i) { printf "%s%s", comma, cpu[line]; comma = "," }
            }'
}

start() {
    cpus=$(cores_of "$1") name=$2 port=$3
    [ -n "$cpus" ] || { echo "this machine has fewer than $REPLICAS cores" >&2; exit 2; }
    shift 3
    echo "$name: processors $cpus, port $port"
    taskset --cpu-list "$cpus" deployer serve BUNDLE --detach --name "$name" \
        --set serve.host=127.0.0.1 --set "serve.port=$port" --set serve.threads=null \
        --set serve.api_key_file=null "$@"
}
"""  # noqa: E501
_ON_GPUS = r"""
start() {
    name=$2 port=$3 gpus=$4
    shift 4
    echo "$name: GPUs $gpus, port $port"
    CUDA_VISIBLE_DEVICES="$gpus" deployer serve BUNDLE --detach --name "$name" \
        --set serve.host=127.0.0.1 --set "serve.port=$port" --set serve.api_key_file=null "$@"
}
"""


def _gpus_of(deployment: Deployment, number: int) -> str:
    each = deployment.gpus
    if not each:
        return ""
    return " " + ",".join(str(gpu) for gpu in range(number * each, (number + 1) * each))


def command(deployment: Deployment) -> list[str]:
    """The router's argv. A server that does not answer gets no request after four seconds."""
    options, parallel = deployment.options, deployment.footprint.parallel
    return [
        "vllm-router",
        "--worker-urls", *(url(LOOPBACK, port) for port in _ports(deployment)),
        "--host", options.host,
        "--port", str(options.port),
        "--policy", POLICY,
        "--balance-abs-threshold", str(max(1, parallel // 2)),
        "--retry-max-retries", str(RETRIES),
        "--health-check-interval-secs", str(HEALTH_SECONDS),
        "--health-failure-threshold", str(HEALTH_FAILURES),
        "--health-success-threshold", "1",
        "--cb-failure-threshold", str(BREAKER_FAILURES),
        "--cb-timeout-duration-secs", str(BREAKER_SECONDS),
        "--worker-startup-check-interval", "1",
    ]  # fmt: skip


def _router(deployment: Deployment) -> str:
    program, *words = map(shlex.quote, command(deployment))
    lines = " \\\n    ".join(_flags(words))
    return f"""#!/bin/sh
# Passes requests on to the servers that start-replicas.sh started. Needs vllm-router {RELEASE};
# VLLM_ROUTER names it where it is not on PATH.
set -eu
exec "${{VLLM_ROUTER:-{program}}}" \\
    {lines}
"""


def _flags(words: list[str]) -> list[str]:
    """Each flag with its values."""
    lines: list[str] = []
    for word in words:
        if word.startswith("--"):
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines


def _readme(deployment: Deployment) -> str:
    options, label = deployment.options, deployment.label
    names = " ".join(_names(deployment))
    address = url(options.host, options.port)
    users = options.replicas * deployment.footprint.parallel
    return f"""# {deployment.manifest.name}: {options.replicas} servers behind vllm-router

Made by `deployer export --to vllm-router` for the bundle with the digest
`{deployment.manifest.digest}`.

1. deployer must be installed and have the bundle (`deployer import BUNDLE.tar`). It makes the
   router's environment too, and says where:

   ```
   deployer toolchain install vllm-router
   ```
2. Start the servers, then the router (FOLDER is what the first command said):

   ```
   sh start-replicas.sh
   VLLM_ROUTER=FOLDER/env/bin/vllm-router sh start-router.sh
   ```
3. Ask it as you would ask one server:

   ```
   curl -s {address}/v1/models
   deployer loadtest --endpoint {address} --profile concurrent --users {users}
   ```

`deployer status` shows the servers (`{label}-1` and on). To stop them:

```
for name in {names}; do deployer stop "$name"; done
```

One at a time can be stopped and started again: the router leaves out a server that does not
answer, and takes it back once it does.

A request that runs on a server when that server dies is lost; its client sees the stream end
without `[DONE]`. A request that comes later goes to another server.

Other machines: start a server on each (a systemd unit, a container), and give the router their
addresses as `--worker-urls`. The router asks nobody for a key: keep it on the loopback or in a
private network, behind a proxy that does.
"""
