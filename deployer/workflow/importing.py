"""Import a bundle from an archive or a folder, and what was carried along to serve it."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.artifacts import SIGNATURE, Bundle, Manifest, file_digest
from deployer.durable import disk_error, write_atomically
from deployer.errors import BundleError, ToolchainError, UsageError
from deployer.home import Home
from deployer.memo import DigestMemo
from deployer.progress import Progress
from deployer.shipping import offline
from deployer.shipping.archive import open_archive
from deployer.shipping.contents import NAME, Contents, contents_of
from deployer.store import Store, remove_tree, require_space
from deployer.toolchains import provision
from deployer.toolchains.environment import carried_packages
from deployer.toolchains.host import this_host
from deployer.toolchains.specs import SPECS, ToolchainSpec
from deployer.workflow.verifying import require_whole


@dataclass(frozen=True)
class Imported:
    """A bundle that can be served now; `there` says that it was imported before.

    `toolchains` were made of the packages in the archive.
    """

    name: str
    bundle: Bundle
    there: bool
    signed: bool
    toolchains: tuple[str, ...]
    command: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bundle": str(self.bundle.root),
            "digest": self.bundle.manifest.digest,
            "there": self.there,
            "signed": self.signed,
            "toolchains": list(self.toolchains),
            "serve": shlex.join(self.command),
        }

    def describe(self) -> list[str]:
        """The result in words."""
        how = "was there already" if self.there else "was verified and imported"
        lines = [f"{self.name} {how}: {self.bundle.root}"]
        if self.toolchains:
            lines.append(f"Ready without a network: {', '.join(self.toolchains)}")
        return [*lines, f"Next: {shlex.join(self.command)}"]


def import_bundle(
    source: Path,
    home: Home,
    progress: Progress,
    *,
    key: Path | None = None,
    name: str | None = None,
) -> Imported:
    """Verify the bundle of a tar file or folder, keep a copy of it, and make its toolchains.

    With `key` its signature must be good. A bundle that was imported before is not copied again.
    Raises StoreError for an archive that is not taken, and leaves nothing of it; ToolchainError
    where the carried packages do not make a toolchain: then the bundle stays.
    """
    if name is not None and not NAME.fullmatch(name):
        raise UsageError(
            f"a bundle cannot be called {name!r}",
            "Use small letters, digits, dots, hyphens and underscores; a letter or digit first.",
        )
    with open_archive(source) as archive:
        contents = contents_of(archive)
        chosen = name or contents.manifest.name
        specs = _usable(contents, progress)
        with _packages(contents, specs, home, progress):
            bundle, there = _publish(contents, chosen, home, progress, key)
            _make(specs, chosen, home, progress)
    return Imported(
        name=chosen,
        bundle=bundle,
        there=there,
        signed=(bundle.root / SIGNATURE).is_file(),
        toolchains=tuple(spec.name for spec in specs),
        command=_serve_command(bundle.manifest, chosen, contents.record is not None),
    )


def _serve_command(manifest: Manifest, name: str, carried: bool) -> tuple[str, ...]:
    return offline.serve_command(manifest, name) if carried else ("deployer", "serve", name)


def _usable(contents: Contents, progress: Progress) -> tuple[ToolchainSpec, ...]:
    """The toolchains whose packages the archive carries for this machine and this deployer."""
    record = contents.record
    if record is None:
        return ()
    if not record.fits(this_host()):
        progress.warn(
            f"the archive's packages are for {record.system} {record.machine} with Python "
            f"{record.python}, not for this machine: only the bundle is imported"
        )
        return ()
    found = []
    for carried in record.toolchains:
        spec = SPECS.get(carried.toolchain)
        if spec and file_digest(spec.lock_path) == carried.lock:
            found.append(spec)
        else:
            progress.warn(
                f"the archive's packages for {carried.toolchain} are those of deployer "
                f"{record.deployer}, not of this one: they are left out"
            )
    return tuple(found)


@contextmanager
def _packages(
    contents: Contents, specs: tuple[ToolchainSpec, ...], home: Home, progress: Progress
) -> Iterator[None]:
    """Put the carried packages where toolchains are made from; taken back where that fails."""
    added: list[Path] = []
    try:
        for spec in specs:
            folder = carried_packages(spec, home)
            if not folder.is_dir() and provision.find(spec.name, home) is None:
                with progress.step(f"Unpacking the packages of {spec.name}"):
                    added.append(folder)
                    _unpack_packages(contents, spec.name, folder)
        yield
    except BaseException:
        for folder in added:
            remove_tree(folder)
        raise


def _make(specs: tuple[ToolchainSpec, ...], name: str, home: Home, progress: Progress) -> None:
    for spec in specs:
        try:
            provision.ensure(spec.name, home, progress)
        except ToolchainError as error:
            raise ToolchainError(
                f"{name} was imported, but not what serves it: {error.message}", error.hint
            ) from error


def _unpack_packages(contents: Contents, toolchain: str, folder: Path) -> None:
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for leftover in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        contents.unpack_packages(toolchain, partial)
        partial.rename(folder)
    except OSError as error:
        raise disk_error(error, folder.parent) from error
    finally:
        remove_tree(partial)


def _publish(
    contents: Contents, name: str, home: Home, progress: Progress, key: Path | None
) -> tuple[Bundle, bool]:
    """The verified bundle among the others, by its digest; the flag tells if it was there."""
    store = Store(home.bundles, lambda path: _memo(home).digest(path))

    def build(folder: Path) -> Mapping[str, Any]:
        require_space(folder, sum(contents.bundle_files.values()), "the import")
        with progress.step(f"Unpacking {contents.archive.label}") as step:
            contents.unpack_bundle(folder, step)
        try:
            require_whole(Bundle.read(folder), home, progress, key)
        except BundleError as error:  # where it lies just now tells nobody anything
            raise BundleError(f"in {contents.archive.label}", error.faults, error.hint) from error
        # No part of what never changes: a bundle may be signed again.
        (folder / SIGNATURE).unlink(missing_ok=True)
        return {"imported": contents.archive.label}

    artifact, there = store.get_or_build(name, contents.manifest.digest, build, progress)
    bundle = Bundle.read(artifact.root)
    with _signed(bundle, contents.signature):
        if there:
            require_whole(bundle, home, progress, key)
            store.touch(artifact)  # the newest of its name, which `serve NAME` takes
    return bundle, there


def _memo(home: Home) -> DigestMemo:
    """Digests as verifying left them a moment ago, so that no file is hashed twice."""
    return DigestMemo.load(home.cache / "digests.json")


@contextmanager
def _signed(bundle: Bundle, signature: str | None) -> Iterator[None]:
    """Put the archive's signature beside a bundle that has none; taken back on an error."""
    path = bundle.root / SIGNATURE
    if signature is None or path.exists():
        yield
        return
    write_atomically(path, signature)
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise
