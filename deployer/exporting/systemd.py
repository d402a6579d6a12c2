"""systemd: a unit that keeps a bundle served, with no more rights than its engine needs. Pure.

The unit runs `deployer serve`, which tells systemd when the first token came, shows life for the
watchdog, and drains on SIGTERM. It is written for systemd 249 and later; what is newer than 252
(Debian 12) is not used.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from deployer.engines import Facts, ModelToServe, engine_named
from deployer.errors import PlanError
from deployer.exporting import sizing
from deployer.exporting.addresses import require_folder, url
from deployer.exporting.deployment import Deployment
from deployer.recipe.addresses import on_loopback

PROGRAM = "/usr/local/bin/deployer"
USER = "deployer"
HOME = "%S/deployer"
KEYS = "api-keys"
SUPERVISOR_BYTES = 128 << 20
"""Memory of deployer's own process beside the engine; 88 MB were measured at a first start."""
SUPERVISOR_SECONDS = 15
"""Within so long after the drain the supervisor ends its engine by force."""
START_MARGIN = 30
HASHED_PER_SECOND = 200 << 20
"""Bytes a second at which a slow disk and processor hash the weights before a first start."""
WATCHDOG_SECONDS = 60
_BOUNDED = ("xllamacpp", "source")
"""llama.cpp's servers of a release that knows --cache-ram."""
_QUOTED = frozenset(" \t\"'\\;{}[]()<>|&*?#~")

_HARDENING = (
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    f"ReadOnlyPaths=-{HOME}/bundles -{HOME}/store -{HOME}/toolchains -{HOME}/wheels",
    "PrivateTmp=yes",
    "PrivateMounts=yes",
    "PrivateUsers=yes",
    "PrivateIPC=yes",
    "ProtectProc=invisible",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "RemoveIPC=yes",
    "KeyringMode=private",
    "UMask=0077",
    "LimitCORE=0",
    "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM",
    "SystemCallFilter=@system-service",
)


def render(deployment: Deployment) -> dict[str, str]:
    """The unit and a README that says how to install it; file name -> content.

    Raises PlanError for what one unit cannot be.
    """
    _check(deployment)
    name = f"deployer-{deployment.label}.service"
    return {name: _unit(deployment), "README.md": _readme(deployment, name)}


def _check(deployment: Deployment) -> None:
    options = deployment.options
    if options.replicas > 1:
        raise PlanError(
            "a systemd unit is one server", "`--to vllm-router` writes several behind one address."
        )
    require_folder(options)
    if not options.key_secret and not on_loopback(options.host):
        raise PlanError(
            f"a server on {options.host} can be reached from other machines, and has no API key",
            "Name the file on that machine that holds the keys, or serve on 127.0.0.1.",
        )


def _unit(deployment: Deployment) -> str:
    sections = {
        "Unit": [
            f"Description={_escaped(deployment.manifest.name)}, served by deployer",
            *_after(deployment.options.host),
            "# deployer itself starts an engine that ended again, with growing pauses. What it",
            "# gives up is left to systemd.",
            "StartLimitIntervalSec=15min",
            "StartLimitBurst=5",
        ],
        "Service": [
            *_process(deployment),
            *_limits(deployment),
            *_HARDENING,
            *_engine_rights(deployment),
            *_network(deployment),
        ],
        "Install": ["WantedBy=multi-user.target"],
    }
    return "\n\n".join("\n".join((f"[{name}]", *lines)) for name, lines in sections.items()) + "\n"


def _after(host: str) -> list[str]:
    """An address that other machines reach may be there later than the network's software."""
    if on_loopback(host):
        return ["After=network.target"]
    return ["Wants=network-online.target", "After=network-online.target"]


def _process(deployment: Deployment) -> list[str]:
    start, grace = sizing.startup_seconds(deployment), sizing.grace_seconds(deployment)
    hashing = math.ceil(deployment.manifest.size_bytes / HASHED_PER_SECOND)
    key = deployment.options.key_secret
    return [
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={' '.join(_command(deployment))}",
        f"User={USER}",
        f"Group={USER}",
        f"StateDirectory={HOME.removeprefix('%S/')}",
        "StateDirectoryMode=0750",
        f"Environment=DEPLOYER_HOME={HOME} HOME={HOME}",
        *([f"LoadCredential={KEYS}:{_escaped(key)}"] if key else []),
        "Restart=on-failure",
        "RestartSec=10",
        "# Settings that cannot be do not get better by another start.",
        "RestartPreventExitStatus=2",
        f"# {start.why}; {hashing} s to hash the files once; {START_MARGIN} s to spare",
        f"TimeoutStartSec={start.value + hashing + START_MARGIN}",
        f"# {grace.why}; {SUPERVISOR_SECONDS} s in which deployer ends what is left",
        f"TimeoutStopSec={grace.value + SUPERVISOR_SECONDS}",
        "TimeoutAbortSec=10",
        "# Life is shown while the engine answers and has nothing to do, or computes.",
        f"WatchdogSec={WATCHDOG_SECONDS}",
    ]


def _command(deployment: Deployment) -> list[str]:
    options = deployment.options
    settings = {
        "host": options.host,
        "port": str(options.port),
        "server": deployment.footprint.server,
        "ready_timeout": str(sizing.startup_seconds(deployment).value),
        **_bounded_cache(deployment),
    }
    words = [PROGRAM, "serve", quoted(options.model or deployment.manifest.name)]
    words += ["--name", deployment.label]
    for name, value in settings.items():
        words += ["--set", quoted(f"serve.{name}={value}")]
    if options.key_secret:
        words += ["--set", f"serve.api_key_file=%d/{KEYS}"]
    elif deployment.manifest.serve.get("api_key_file"):
        words += ["--set", "serve.api_key_file=null"]
    for unset in deployment.unplaced:
        words += ["--set", unset]
    return words


def _bounded_cache(deployment: Deployment) -> dict[str, str]:
    """llama.cpp keeps old prompts in up to 8 GiB of memory by itself, far over the limit."""
    given = deployment.serve.extra_args
    bounded = any(word.split("=")[0] in ("--cache-ram", "-cram") for word in given)
    if bounded or deployment.footprint.server not in _BOUNDED:
        return {}
    room = sizing.prompt_cache(deployment).value >> 20
    return {"extra_args": json.dumps([*given, "--cache-ram", str(room)])}


def _limits(deployment: Deployment) -> list[str]:
    memory = sizing.memory_limit(deployment)
    lines = [
        f"# {memory.why}; {SUPERVISOR_BYTES >> 20} MiB for deployer's own process",
        f"MemoryMax={(memory.value + SUPERVISOR_BYTES) >> 20}M",
        "TasksMax=4096",
        "LimitNOFILE=65536",
    ]
    if not deployment.gpus:
        lines += [
            "# Cores of its own, where others shall have the rest; it takes a thread for each.",
            "#CPUAffinity=0-3",
        ]
    return lines


def _engine_rights(deployment: Deployment) -> list[str]:
    """What llama.cpp can do without and others need: code made at run time, their own placement."""
    native = deployment.manifest.engine == "llama.cpp"
    gpu = deployment.footprint.device == "cuda"
    lines = [f"SystemCallFilter=~@privileged{' @resources' if native else ''}"]
    if native and not gpu:
        lines.append("MemoryDenyWriteExecute=yes")
    if gpu:
        # char-nvidia*: the groups the driver lists in /proc/devices
        lines += ["DevicePolicy=closed", "DeviceAllow=char-nvidia* rw"]
    else:
        lines.append("PrivateDevices=yes")
    families = "AF_UNIX AF_INET AF_INET6" + ("" if native else " AF_NETLINK")
    return [*lines, f"RestrictAddressFamilies={families}"]


def _network(deployment: Deployment) -> list[str]:
    if on_loopback(deployment.options.host):
        return ["IPAddressDeny=any", "IPAddressAllow=localhost"]
    return [
        "# Let nobody in but those who ask this server, for example:",
        "#IPAddressDeny=any",
        "#IPAddressAllow=localhost 10.0.0.0/8",
    ]


def _escaped(text: str) -> str:
    """Without specifiers, in one line."""
    return " ".join(text.split()).replace("%", "%%")


def quoted(word: str) -> str:
    """A word of a command line as systemd reads it back, no specifier or variable replaced."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{plain}"' if not word or _QUOTED & set(word) else plain


def _readme(deployment: Deployment, unit: str) -> str:
    options = deployment.options
    only_loopback = " and has no network but the loopback" if on_loopback(options.host) else ""
    keys = (
        f"\nThe API keys, one a line, lie in {options.key_secret}; only root need read it.\n"
        if options.key_secret
        else ""
    )
    return f"""# {deployment.manifest.name} as a systemd service

Made by `deployer export --to systemd` for the bundle with the digest
`{deployment.manifest.digest}`.

1. Install deployer for all users, so that `{PROGRAM}` runs.
2. Make its user, and bring the bundle and the toolchain that serves it:

   ```
   useradd --system --home-dir /var/lib/deployer --shell /usr/sbin/nologin {USER}
   install -d -o {USER} -g {USER} -m 0750 /var/lib/deployer
   as() {{ runuser -u {USER} -- env DEPLOYER_HOME=/var/lib/deployer HOME=/var/lib/deployer "$@"; }}
   as {PROGRAM} import BUNDLE.tar
   as {PROGRAM} toolchain install {_toolchain(deployment)}
   ```

   An archive of `deployer export --to tar --offline` carries the toolchain too. The unit serves
   `{options.model or deployment.manifest.name}`. It can change neither bundles nor toolchains\
{only_loopback}.
3. Install and start the unit:

   ```
   install -m 0644 {unit} /etc/systemd/system/
   systemctl daemon-reload
   systemctl enable --now {unit}
   systemctl status {unit}
   curl -s {url(options.host, options.port)}/health
   ```
{keys}
`systemctl stop` lets running requests finish. `journalctl -u {unit}` shows
what deployer says; what the engine says is in
`/var/lib/deployer/servers/{deployment.label}/engine.log`.
"""


def _toolchain(deployment: Deployment) -> str:
    """The name of the toolchain that has the server."""
    manifest, footprint = deployment.manifest, deployment.footprint
    model = ModelToServe.of(manifest, Path(manifest.weights), footprint.device)
    engine = engine_named(manifest.engine)
    facts = Facts(has_gpu=footprint.device == "cuda")
    launch = engine.launch(footprint.server, model, deployment.serve, facts)
    return launch.command.toolchain or ""
