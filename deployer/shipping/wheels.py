"""Collect the packages that serving a bundle needs where there is no network.

pip fetches them, since uv cannot: deployer's own dependencies in the versions that run here, those
of a toolchain as its lock names them, hash by hash. What was fetched stays in the cache for the
next export, and is for this platform and Python.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import distributions, requires
from pathlib import Path

from deployer import process
from deployer.artifacts import SIGNATURE, Bundle, Manifest, file_digest, json_digest
from deployer.durable import hold_lock
from deployer.errors import CommandError, ToolchainError
from deployer.home import Home
from deployer.progress import Progress, Step
from deployer.shipping import offline
from deployer.shipping.own_wheel import write_own_wheel
from deployer.store import remove_tree
from deployer.toolchains.environment import (
    INSTALL_TIMEOUT,
    carried_packages,
    cause_of,
    uv_environment,
)
from deployer.toolchains.host import this_host
from deployer.toolchains.specs import Host, ToolchainSpec, spec_named

SIGNING = "model-signing"
"""The toolchain that checks a signature; carried where there is one to check."""
KEY_DIGITS = 12
_QUIET = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off")
_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==", re.MULTILINE)
_COLLECTING = re.compile(r"^Collecting ([\w.-]+)")


def collect(bundle: Bundle, home: Home, folder: Path, progress: Progress) -> dict[str, Path | str]:
    """Fetch packages; gives what `tar.write` takes as `extra`.

    `folder` is an empty one for this export's own small files, kept until the archive is written.
    Raises ToolchainError where the packages cannot be had or are for another Python, PlanError
    where the bundle's settings cannot be served.
    """
    manifest, host = bundle.manifest, this_host()
    specs = _toolchains(manifest, signed=(bundle.root / SIGNATURE).is_file())
    for spec in specs:
        check(spec, host)
    _tell(manifest, progress)
    own = _own_packages(home, folder, progress)
    packages = {f"{offline.OWN}/{path.name}": path for path in own}
    for spec in specs:
        locked = _locked_packages(spec, home, progress)
        packages |= {f"{spec.name}/{path.name}": path for path in sorted(locked.iterdir())}
    carried = {f"{offline.WHEELS}/{name}": path for name, path in packages.items()}
    return {**carried, **offline.beside(manifest, offline.Offline.of(specs, host))}


def _toolchains(manifest: Manifest, signed: bool) -> tuple[ToolchainSpec, ...]:
    """The toolchain that serves, and the one that checks the signature where there is one."""
    serving = offline.serving(manifest).command.toolchain
    names = [name for name in (serving, SIGNING if signed else None) if name]
    return tuple(spec_named(name) for name in names)


def check(spec: ToolchainSpec, host: Host) -> None:
    """Raise ToolchainError where the packages fetched on `host` would not be the toolchain's.

    A GPU is not asked for: packages are fetched on a machine without one as well.
    """
    spec.check_host(replace(host, cuda=True))
    if spec.python_for(host) != host.python:
        raise ToolchainError(
            f"the {spec.name} toolchain needs Python {spec.python_for(host)}; deployer runs on "
            f"{host.python}",
            f"Install deployer with Python {spec.python_for(host)} and export again.",
        )


def _tell(manifest: Manifest, progress: Progress) -> None:
    """Say where another server than the recipe's is carried."""
    command = offline.serve_command(manifest, manifest.name)
    if len(command) > 3:
        progress.warn(
            f"serve.server is {manifest.serve['server']}, which would need more than packages; "
            f"the archive carries the prebuilt server instead: {' '.join(command)}"
        )


def _own_packages(home: Home, folder: Path, progress: Progress) -> list[Path]:
    """deployer's wheel, wheels of all it needs in the versions that run now, and their hashes."""
    own = write_own_wheel(folder)
    needs = "".join(f"{line}\n" for line in sorted(requires("deployer") or ()))
    versions = _running_versions()

    def fetch(target: Path, step: Step) -> None:
        (folder / "needs.txt").write_text(needs, encoding="utf-8")
        (folder / "versions.txt").write_text(versions, encoding="utf-8")
        arguments = [
            "wheel", "--wheel-dir", str(target), "--constraint", str(folder / "versions.txt"),
            "--requirement", str(folder / "needs.txt"),
        ]  # fmt: skip
        _pip(arguments, home, "the packages of deployer", step, 0)

    found = _kept(offline.OWN, [needs, versions], home, progress, fetch)
    wheels = [own, *sorted(found.iterdir())]
    listed = folder / offline.REQUIREMENTS
    listed.write_text(hashed(wheels), encoding="utf-8")
    return [*wheels, listed]


def _locked_packages(spec: ToolchainSpec, home: Home, progress: Progress) -> Path:
    """The folder with all that a lock names, for this platform, each file with its hash."""
    brought = carried_packages(spec, home)
    if brought.is_dir():
        return brought
    pins = set(_PIN.findall(spec.lock_path.read_text(encoding="utf-8")))
    what = f"the packages of the {spec.name} toolchain"

    def fetch(target: Path, step: Step) -> None:
        arguments = ["download", *download_arguments(spec), "--dest", str(target)]
        _pip([*arguments, "--requirement", str(spec.lock_path)], home, what, step, len(pins))

    return _kept(spec.name, [file_digest(spec.lock_path)], home, progress, fetch)


def _kept(
    name: str,
    inputs: list[str],
    home: Home,
    progress: Progress,
    fetch: Callable[[Path, Step], None],
) -> Path:
    """The folder of the cache for these inputs here; filled by `fetch` where there is none."""
    machine = [platform.system(), platform.machine(), *platform.libc_ver(), sys.version]
    root = home.cache / "packages"
    folder = root / f"{name}-{json_digest([*inputs, *machine])[:KEY_DIGITS]}"
    with hold_lock(root / ".locks" / f"{folder.name}.lock", f"another export fetches {name}",
                   progress):  # fmt: skip
        if folder.is_dir():
            return folder
        partial = root / f".{folder.name}"
        remove_tree(partial)
        partial.mkdir()
        try:
            with progress.step(f"Fetching the packages of {name}") as step:
                fetch(partial, step)
            partial.rename(folder)
        finally:
            remove_tree(partial)
    return folder


def _running_versions() -> str:
    """A line NAME==VERSION for each distribution of the running Python but deployer."""
    names = {found.metadata["Name"]: found.version for found in distributions()}
    pins = (f"{name}=={version}" for name, version in names.items() if name != "deployer")
    return "\n".join(sorted(pins)) + "\n"


def hashed(wheels: Sequence[Path]) -> str:
    """A requirements file that names every wheel with its hash."""
    lines = []
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        lines.append(f"{name}=={version} --hash=sha256:{file_digest(wheel)}\n")
    return "".join(lines)


def download_arguments(spec: ToolchainSpec) -> list[str]:
    """What pip must be told so that it fetches a lock as it stands; wheels, but for sources."""
    sources = [part for name in spec.from_source for part in ("--no-binary", name)]
    return ["--no-deps", "--require-hashes", "--only-binary", ":all:", *sources]


def _pip(arguments: Sequence[str], home: Home, what: str, step: Step, total: int) -> None:
    """Run pip; `total` is how many packages it will collect, 0 where that is not known.

    It is the newest pip, which uv fetches: the Python we run on may have an old one, or none.
    """
    from uv import find_uv_bin

    seen: set[str] = set()

    def on_line(line: str) -> None:
        if match := _COLLECTING.match(line):
            seen.add(match[1])
            step.update(len(seen), total or None, match[1])

    command, *rest = arguments
    pip = [find_uv_bin(), "tool", "run", "--python", sys.executable, "pip"]
    try:
        process.run(
            [*pip, command, *_QUIET, *rest],
            env=process.clean_environment(uv_environment(home)),
            log_path=home.logs / "export-offline.log",
            timeout=INSTALL_TIMEOUT,
            on_line=on_line,
        )
    except CommandError as error:
        cause, hint = cause_of(error)
        raise ToolchainError(f"{what} could not be collected: {cause}", hint) from error
