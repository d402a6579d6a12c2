"""Make a toolchain on first use: lock, check again, build, health-check, publish.

A builder that dies leaves a folder without marker; the next one deletes it and starts anew, with
every download still in the cache.
"""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path

from deployer.errors import ToolchainError
from deployer.home import Home
from deployer.progress import SILENT, Progress, Step
from deployer.toolchains import environment, native, sources
from deployer.toolchains.host import this_host
from deployer.toolchains.installation import (
    Installed,
    Toolchain,
    discard,
    find,
    installation_lock,
    installed,
    remove,
    root_of,
    write_marker,
)
from deployer.toolchains.specs import ToolchainSpec, spec_named

__all__ = ["Installed", "Toolchain", "ensure", "find", "installed", "remove"]


def ensure(name: str, home: Home, progress: Progress = SILENT) -> Toolchain:
    """The toolchain of that name, made now if it is not installed yet.

    Toolchains it requires are made first. Safe to call from several processes at once: one
    builds, the others wait. Raises ToolchainError, and leaves nothing behind, where it cannot
    be made.
    """
    found = find(name, home)
    if found:
        return found
    spec = spec_named(name)
    spec.check_host(this_host())
    native.check_compiler(spec)
    required = {needed: ensure(needed, home, progress) for needed in spec.requires}
    root = root_of(spec, spec.key(this_host()), home)
    with installation_lock(root, home, progress):
        return find(name, home) or _make(spec, root, home, required, progress)


def _make(
    spec: ToolchainSpec,
    root: Path,
    home: Home,
    required: dict[str, Toolchain],
    progress: Progress,
) -> Toolchain:
    _check_space(spec, home)
    discard(root)
    root.mkdir(parents=True)
    log_path = home.logs / f"toolchain-{root.name}.log"
    try:
        with progress.step(f"toolchain {spec.name}") as step:
            versions = _fill(spec, root, home, required, step, log_path)
        marker = {
            "name": spec.name,
            "key": spec.key(this_host()),
            "versions": versions,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "size_bytes": _size(root),
        }
        write_marker(root, marker)
    except BaseException:
        discard(root)
        raise
    made = find(spec.name, home)
    if made is None:
        raise ToolchainError(f"the {spec.name} toolchain vanished from {root}")
    return made


def _fill(
    spec: ToolchainSpec,
    root: Path,
    home: Home,
    required: dict[str, Toolchain],
    step: Step,
    log_path: Path,
) -> dict[str, str]:
    """Everything an installation holds but the marker; gives the versions to record."""
    step.update(note="installing packages")
    python = environment.create(spec, this_host(), root, home, log_path)
    versions: dict[str, str] = {}
    if spec.source:
        archive = sources.fetch(spec, python, home, step, log_path)
        versions[spec.source.package] = spec.source.version
        if spec.source_parts:
            sources.keep_parts(archive, spec, root / "source")
        if spec.targets:
            native.build(archive, spec, root, step, log_path)
        if spec.binds_native:
            native.bind(archive, spec, root, required, home, log_path)
    step.update(note="checking that it works")
    versions |= environment.health_check(spec, python, log_path)
    native.check_programs(spec, root, log_path)
    return versions


def _check_space(spec: ToolchainSpec, home: Home) -> None:
    home.toolchains.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home.toolchains).free // 2**20
    if free < spec.needs_mb:
        raise ToolchainError(
            f"the {spec.name} toolchain needs {spec.needs_mb} MiB of disk space; {free} MiB are "
            f"free at {home.toolchains}",
            "Free some space, or set DEPLOYER_HOME to a folder on a larger disk.",
        )


def _size(root: Path) -> int:
    """Bytes of all regular files below `root`, links not followed."""
    stats = (path.lstat() for path in root.rglob("*") if not path.is_symlink())
    return sum(stat.st_size for stat in stats)
