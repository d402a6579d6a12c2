"""Toolchains on disk: found by their marker file, which is written last.

    toolchains/NAME-KEY12/
        env/             virtual environment
        bin/             compiled programs and libraries, where there are any
        source/          the kept part of the llama.cpp tree, where there is any
        toolchain.json   the marker: without it the folder is a leftover

A virtual environment holds its own absolute path (in scripts and pyvenv.cfg), so it is made where
it stays and never renamed; publishing is the atomic replace of the marker. Looking a toolchain up
reads one small file and starts no process.
"""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deployer.durable import hold_lock, write_atomically
from deployer.errors import ToolchainError
from deployer.home import Home
from deployer.progress import SILENT, Progress
from deployer.toolchains.host import this_host
from deployer.toolchains.specs import SPECS, ToolchainSpec, spec_named

MARKER = "toolchain.json"
KEY_DIGITS = 12


@dataclass(frozen=True)
class Toolchain:
    """An installed, health-checked toolchain.

    `versions` maps the main distributions to their versions, for provenance.
    """

    name: str
    key: str
    root: Path
    versions: dict[str, str] = field(hash=False)

    @property
    def python(self) -> Path:
        return self.root / "env" / "bin" / "python"

    @property
    def source(self) -> Path | None:
        """The kept llama.cpp tree (the converter), or None."""
        tree = self.root / "source"
        return tree if tree.is_dir() else None

    def program(self, name: str) -> Path:
        """The path of a program it holds; raises ToolchainError where there is none."""
        for folder in (self.root / "bin", self.root / "env" / "bin"):
            if (folder / name).is_file():
                return folder / name
        raise ToolchainError(f"the {self.name} toolchain has no program {name}")


@dataclass(frozen=True)
class Installed:
    """One line of `deployer toolchain list`; `current` is false for one of an older spec."""

    name: str
    key: str
    path: Path
    size_bytes: int
    created: str
    current: bool
    versions: dict[str, str] = field(hash=False)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


def root_of(spec: ToolchainSpec, key: str, home: Home) -> Path:
    return home.toolchains / f"{spec.name}-{key[:KEY_DIGITS]}"


def find(name: str, home: Home) -> Toolchain | None:
    """The installed toolchain of that name for this machine, or None; takes milliseconds."""
    spec = spec_named(name)
    key = spec.key(this_host())
    root = root_of(spec, key, home)
    marker = read_marker(root)
    if marker is None or marker["key"] != key:
        return None
    toolchain = Toolchain(name, key, root, marker["versions"])
    # The link breaks when the interpreter it was made from is uninstalled.
    return toolchain if toolchain.python.exists() else None


def read_marker(root: Path) -> dict[str, Any] | None:
    """The marker's content, or None where the folder is absent or not a finished installation."""
    try:
        marker = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(marker, dict) and {"name", "key", "versions"} <= set(marker)
    return marker if known else None


def write_marker(root: Path, marker: dict[str, Any]) -> None:
    """Publish: from here on `find` sees the toolchain."""
    write_atomically(root / MARKER, json.dumps(marker, indent=1, sort_keys=True))


def installed(home: Home) -> list[Installed]:
    """Every finished installation below `home`, by name; leftovers are not listed."""
    host = this_host()
    current = {spec.key(host) for spec in SPECS.values()}
    found = []
    for root in sorted(home.toolchains.glob("*")) if home.toolchains.is_dir() else []:
        marker = read_marker(root)
        if marker is None:
            continue
        found.append(
            Installed(
                name=marker["name"],
                key=marker["key"],
                path=root,
                size_bytes=int(marker.get("size_bytes", 0)),
                created=str(marker.get("created", "")),
                current=marker["key"] in current,
                versions=marker["versions"],
            )
        )
    return found


def remove(name: str, home: Home) -> list[Path]:
    """Delete every installation of that name, old ones too, and give the folders deleted.

    `name` is a toolchain's name, or NAME-KEY12 for one installation alone. Waits for a builder.
    Raises ToolchainError where there is none.
    """
    doomed = [entry.path for entry in installed(home) if name in (entry.name, entry.path.name)]
    if not doomed:
        raise ToolchainError(
            f"no toolchain {name} is installed", "`deployer toolchain list` shows what is."
        )
    for root in doomed:
        with installation_lock(root, home, SILENT):
            discard(root)
    return doomed


def discard(root: Path) -> None:
    """Delete an installation, marker first so that it is never seen half-deleted."""
    (root / MARKER).unlink(missing_ok=True)
    shutil.rmtree(root, ignore_errors=True)


def installation_lock(root: Path, home: Home, progress: Progress) -> AbstractContextManager[None]:
    """The lock of one installation, to be held while it is made or deleted."""
    path = home.toolchains / ".locks" / f"{root.name}.lock"
    return hold_lock(path, f"another deployer works on {root.name}", progress)
