"""Virtual environments from hashed locks, made by uv; pip's settings are passed on to it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from deployer import process
from deployer.artifacts import file_digest
from deployer.durable import FULL_DISK
from deployer.errors import CommandError, ToolchainError
from deployer.home import Home
from deployer.toolchains.specs import Host, ToolchainSpec

INSTALL_TIMEOUT = 3600.0
HEALTH_TIMEOUT = 600.0
LOCK_DIGITS = 12
"""Digits of a lock's SHA-256 that name the folder of packages carried for it."""
_HEALTH_CHECK = """
import importlib, importlib.metadata, json, sys
imports, versions = json.loads(sys.argv[1])
for name in imports:
    importlib.import_module(name)
print(json.dumps({name: importlib.metadata.version(name) for name in versions}))
"""
_PIP_TO_UV = (
    ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", ("UV_DEFAULT_INDEX", "UV_INDEX_URL")),
    ("PIP_EXTRA_INDEX_URL", "UV_INDEX", ("UV_INDEX", "UV_EXTRA_INDEX_URL")),
    ("PIP_NO_INDEX", "UV_NO_INDEX", ("UV_NO_INDEX",)),
    ("PIP_CERT", "SSL_CERT_FILE", ("SSL_CERT_FILE",)),
)


def uv_environment(home: Home, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables for uv: its cache below `home`, and what the user told pip but not uv.

    Any index may offer a package that the lock names, since hashes decide what is installed.
    """
    given = os.environ if environ is None else environ
    added = {"UV_NO_PROGRESS": "1", "UV_INDEX_STRATEGY": "unsafe-best-match"}
    if "UV_CACHE_DIR" not in given:
        added["UV_CACHE_DIR"] = str(home.cache / "uv")
    for pip_name, uv_name, already in _PIP_TO_UV:
        if given.get(pip_name) and not any(given.get(name) for name in already):
            added[uv_name] = given[pip_name]
    return added


def find_links(environ: Mapping[str, str] | None = None) -> list[str]:
    """Folders and pages that PIP_FIND_LINKS and UV_FIND_LINKS offer wheels in."""
    given = os.environ if environ is None else environ
    for_uv = given.get("UV_FIND_LINKS", "").replace(",", " ")
    return list(dict.fromkeys(f"{given.get('PIP_FIND_LINKS', '')} {for_uv}".split()))


def wheel_arguments(lock_text: str, links: Sequence[str]) -> list[str]:
    """uv arguments that say where wheels come from.

    A CPU build of torch is not on the usual index: where the lock names one and no folder of
    `links` holds it, uv is told to use PyTorch's own index for it.
    """
    arguments = [part for link in links for part in ("--find-links", link)]
    torch = re.search(r"^torch==(\S+\+cpu)", lock_text, re.MULTILINE)
    if torch and "UV_TORCH_BACKEND" not in os.environ:
        pattern = f"torch-{torch[1]}-*.whl"
        local = [Path(link.removeprefix("file://")) for link in links]
        if not any(folder.is_dir() and list(folder.glob(pattern)) for folder in local):
            arguments += ["--torch-backend", "cpu"]
    return arguments


def carried_packages(spec: ToolchainSpec, home: Home) -> Path:
    """The folder for packages that `deployer import` brought for exactly this spec's lock.

    Where it exists, the toolchain is made from it, and no index is asked.
    """
    return home.wheels / f"{spec.name}-{file_digest(spec.lock_path)[:LOCK_DIGITS]}"


def package_arguments(spec: ToolchainSpec, home: Home) -> list[str]:
    """uv arguments that say where a spec's packages come from."""
    carried = carried_packages(spec, home)
    if carried.is_dir():
        return ["--no-index", "--find-links", str(carried)]
    return wheel_arguments(spec.lock_path.read_text(encoding="utf-8"), find_links())


def source_arguments(spec: ToolchainSpec) -> list[str]:
    """uv arguments that let what has no wheel be built, with the lock's own setuptools."""
    if not spec.from_source:
        return []
    built = [part for name in spec.from_source for part in ("--no-binary", name)]
    return [*built, "--build-constraints", str(spec.lock_path)]


def uv(arguments: Sequence[str], *, home: Home, cwd: Path, log_path: Path) -> None:
    """Run uv; raises CommandError when it fails."""
    from uv import find_uv_bin

    process.run(
        [find_uv_bin(), *arguments],
        env=process.clean_environment(uv_environment(home)),
        cwd=cwd,
        log_path=log_path,
        timeout=INSTALL_TIMEOUT,
    )


def create(spec: ToolchainSpec, host: Host, root: Path, home: Home, log_path: Path) -> Path:
    """Make `root`/env with all that the spec's lock names; gives its Python.

    The interpreter is the one we run on, unless the lock is for another version: then uv finds
    (or, where it may, downloads) one.
    """
    wanted = spec.python_for(host)
    base = getattr(sys, "_base_executable", sys.executable)
    interpreter = base if wanted == host.python else wanted
    python = root / "env" / "bin" / "python"
    install = ["pip", "install", "--python", str(python), "--no-deps", "--require-hashes"]
    wheels = ["--only-binary", ":all:", *source_arguments(spec)]
    wheels += package_arguments(spec, home)
    try:
        uv(["venv", "--no-project", "--python", interpreter, str(root / "env")],
           home=home, cwd=root, log_path=log_path)  # fmt: skip
        uv([*install, *wheels, "-r", str(spec.lock_path)], home=home, cwd=root, log_path=log_path)
    except CommandError as error:
        raise explain(error, spec) from error
    return python


def health_check(spec: ToolchainSpec, python: Path, log_path: Path) -> dict[str, str]:
    """Import what must be importable; gives the versions of the spec's main distributions."""
    lines: list[str] = []
    question = json.dumps([spec.imports, spec.versions])
    try:
        process.run(
            [str(python), "-I", "-c", _HEALTH_CHECK, question],
            env=process.clean_environment(),
            cwd=python.parent,
            log_path=log_path,
            timeout=HEALTH_TIMEOUT,
            on_line=lines.append,
        )
    except CommandError as error:
        cause = (error.tail.splitlines() or [error.message])[-1]
        raise ToolchainError(
            f"the {spec.name} toolchain was installed but does not work: {cause}",
            f"The whole log is in {log_path}.",
        ) from error
    versions: dict[str, str] = json.loads(lines[-1])
    return versions


_CAUSES = (
    (
        FULL_DISK,
        "the disk is full",
        "Free some space, or set DEPLOYER_HOME to a folder on a larger disk.",
    ),
    (
        r"[Hh]ash(es)? mismatch|DO NOT MATCH THE HASHES",
        "a downloaded package is not the one that is locked (its hash differs)",
        "A mirror or a local wheel folder offers other files: check the package index settings.",
    ),
    (
        r"dns error|[Cc]onnect error|are you offline|[Cc]onnection refused|error sending request"
        r"|Failed to fetch|client error \(Connect\)|timed out|NewConnectionError|Max retries"
        r"|Network (is unreachable|connectivity is disabled)",
        "the package index cannot be reached",
        "Check the network, or name a mirror in PIP_INDEX_URL or UV_DEFAULT_INDEX; what was "
        "downloaded is kept.",
    ),
    (
        r"No interpreter found|No Python at|Could not find .*Python",
        "no suitable Python was found",
        "Install Python 3.11, or let uv download it (unset UV_PYTHON_DOWNLOADS).",
    ),
    (
        r"No solution found|no wheels? with a matching|not found in the package registry"
        r"|No matching distribution|has no usable wheels",
        "the package index offers no build of a locked package for this machine",
        "The log names the package. The CPU build of torch may be offered as a wheel in a folder "
        "named by PIP_FIND_LINKS.",
    ),
)  # fmt: skip


def explain(error: CommandError, spec: ToolchainSpec) -> ToolchainError:
    """What a failed uv, pip or build says, as one sentence; the log has the rest."""
    cause, hint = cause_of(error)
    return ToolchainError(f"the {spec.name} toolchain could not be made: {cause}", hint)


def cause_of(error: CommandError) -> tuple[str, str]:
    """(why a uv, pip or build command failed, what to do about it), from its log's tail."""
    for pattern, cause, hint in _CAUSES:
        if re.search(pattern, error.tail):
            return cause, f"{hint} The whole log is in {error.log_path}."
    last = [line.strip() for line in error.tail.splitlines() if line.strip()]
    return (last or [error.message])[-1], f"The whole log is in {error.log_path}."
