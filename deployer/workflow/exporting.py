"""Export a bundle: verify it, see what it takes, and write what another place needs to run it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.artifacts import Bundle
from deployer.durable import disk_error
from deployer.errors import UsageError
from deployer.exporting import RENDERERS, UNMEASURED, Deployment, Options
from deployer.footprint import Footprint
from deployer.home import Home
from deployer.progress import Progress
from deployer.shipping import oci, tar, wheels
from deployer.workflow.bundles import find_bundle
from deployer.workflow.footprints import footprint
from deployer.workflow.verifying import require_whole

FOOTPRINT = "footprint.json"
OCI_MARK = "oci-layout"
"""Files by which an earlier export is known."""


@dataclass(frozen=True)
class Exported:
    """What was written: a file or a folder, and what to do with it."""

    target: str
    bundle: Bundle
    path: Path
    files: tuple[str, ...]
    details: Mapping[str, Any]
    footprint: Footprint | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "bundle": str(self.bundle.root),
            "digest": self.bundle.manifest.digest,
            "path": str(self.path),
            "files": list(self.files),
            **self.details,
            "footprint": self.footprint.as_json() if self.footprint else None,
        }

    def describe(self) -> list[str]:
        """What a person reads."""
        lines = [f"{self.target} of {self.bundle.manifest.name}: {self.path}"]
        lines += [f"  {name}" for name in self.files]
        lines += [f"{name}: {value}" for name, value in self.details.items()]
        if self.footprint is not None:
            lines.append(f"Memory and times are {self.footprint.origin}.")
        return lines


def export(
    what: str | None,
    target: str,
    options: Options,
    home: Home,
    progress: Progress,
    *,
    output: Path | None = None,
    offline: bool = False,
    estimate: bool = False,
    force: bool = False,
    key: Path | None = None,
) -> Exported:
    """Write a bundle, or the files that run it, for a target:
    tar, oci-layout, or one of `RENDERERS`.

    The bundle is verified first (with `key`, its signature too). What the files say of memory and
    time was measured by starting the server once, or is an `estimate`. An existing `output` is
    replaced with `force` alone. Raises UsageError and PlanError for what cannot be exported.
    """
    if offline and target != "tar":
        raise UsageError(
            f"--offline is for --to tar, not for {target}",
            "A tar carries the bundle, the server and deployer to a machine without network.",
        )
    bundle = find_bundle(what, home)
    path = output or Path(_default_name(bundle, target))
    _require_free(path, force)
    require_whole(bundle, home, progress, key)
    if target == "tar":
        return _tar(bundle, path, home, progress, offline)
    if target == "oci-layout":
        return _layout(bundle, path, progress)
    return _files(bundle, target, options, path, home, progress, estimate)


def _default_name(bundle: Bundle, target: str) -> str:
    name = bundle.manifest.full_name
    return f"{name}.tar" if target == "tar" else f"{name}-{target}"


def _require_free(path: Path, force: bool) -> None:
    if os.path.lexists(path) and not force:
        raise UsageError(
            f"{path} is there already", "Name another --output, or replace it with --force."
        )


def _tar(bundle: Bundle, path: Path, home: Home, progress: Progress, offline: bool) -> Exported:
    """One file, with the packages that serving needs where it is for a place without network."""
    with tempfile.TemporaryDirectory(prefix="deployer-wheels-") as folder:
        carried = wheels.collect(bundle, home, Path(folder), progress) if offline else None
        written = tar.write(bundle, path, progress, carried)
    details = {"bytes": written.size_bytes, "sha256": written.sha256}
    return Exported("tar", bundle, path, (), details)


def _layout(bundle: Bundle, path: Path, progress: Progress) -> Exported:
    if path.exists():
        _require_ours(path, OCI_MARK)
        fresh = path.with_name(f".{path.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        written = oci.write(bundle, fresh, progress)
        shutil.rmtree(path)
        fresh.rename(path)
    else:
        written = oci.write(bundle, path, progress)
    details = {"image": f"oci:{path}:{written.tag}", "image_digest": written.digest,
               "bytes": written.bytes}  # fmt: skip
    return Exported("oci-layout", bundle, path, (), details)


def _files(
    bundle: Bundle,
    target: str,
    options: Options,
    path: Path,
    home: Home,
    progress: Progress,
    estimate: bool,
) -> Exported:
    """The files of a renderer, in a folder that is there whole or not at all."""
    render = RENDERERS[target]
    estimate = estimate or target in UNMEASURED
    taken = footprint(bundle, home, progress, estimate=True)
    files = dict(render(Deployment(bundle.manifest, taken, options)))
    if not estimate:  # what cannot be exported was refused before anything is started
        taken = footprint(bundle, home, progress, estimate=False)
        files = dict(render(Deployment(bundle.manifest, taken, options)))
    files[FOOTPRINT] = json.dumps(taken.as_json(), indent=1) + "\n"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")
            if name.endswith(".sh"):
                (partial / name).chmod(0o755)
        if path.exists():
            _require_ours(path, FOOTPRINT)
            shutil.rmtree(path)
        partial.rename(path)
    except OSError as error:
        raise disk_error(error, path.parent) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(target, bundle, path, tuple(files), {}, taken)


def _require_ours(path: Path, mark: str) -> None:
    """Raise UsageError unless a folder is an earlier export: --force deletes nothing else."""
    if not (path / mark).is_file():
        raise UsageError(
            f"{path} is no earlier export of this kind, so it is not replaced",
            "Name another --output.",
        )
