"""What an archive holds: the bundle that its manifest names, and perhaps packages.

The manifest was made by whoever made the archive, so it is used for nothing but to say which files
there may be. Verifying comes when they lie in a folder of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deployer.artifacts import MANIFEST, SIGNATURE, Manifest
from deployer.progress import Step
from deployer.shipping import offline
from deployer.shipping.archive import Archive, read_small, refused
from deployer.shipping.offline import Offline
from deployer.shipping.tar import BUNDLE

MAX_MANIFEST = 16 << 20
MAX_SMALL = 1 << 20
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""What a bundle may be called; the same as a recipe."""
_PACKAGE = re.compile(
    rf"{offline.WHEELS}/([a-z0-9-]+)/([A-Za-z0-9][\w.+!-]*\.(?:whl|tar\.gz|zip)|requirements\.txt)"
)


@dataclass(frozen=True)
class Contents:
    """An archive that holds what it should; `prefix` is the path of the bundle in it."""

    archive: Archive
    manifest: Manifest
    prefix: str
    record: Offline | None

    @property
    def bundle_files(self) -> dict[str, int]:
        """The bundle's files, by their path in the bundle, and their sizes in bytes."""
        names = [MANIFEST, SIGNATURE, *(each.path for each in self.manifest.files)]
        sizes = self.archive.sizes
        return {name: sizes[self.prefix + name] for name in names if self.prefix + name in sizes}

    @property
    def signature(self) -> str | None:
        """The bundle's signature file; raises StoreError where it is no text."""
        name = self.prefix + SIGNATURE
        if name not in self.archive.sizes:
            return None
        try:
            return read_small(self.archive, name, MAX_SMALL).decode()
        except UnicodeDecodeError as error:
            raise refused(self.archive.label, f"{SIGNATURE} is no text") from error

    @property
    def package_files(self) -> dict[str, tuple[str, str]]:
        """The packages by their path in the archive: (toolchain or `deployer`, file name)."""
        found = ((name, _PACKAGE.fullmatch(name)) for name in self.archive.sizes)
        return {name: (match[1], match[2]) for name, match in found if match}

    def unpack_bundle(self, folder: Path, step: Step) -> None:
        """Write the bundle's files to an empty folder."""
        files = self.bundle_files
        done, total = 0, sum(files.values())
        for name in files:
            for written in _copy(self.archive, self.prefix + name, folder / name):
                done += written
                step.update(done, total, name)

    def unpack_packages(self, toolchain: str, folder: Path) -> None:
        """Write the packages of one toolchain to an empty folder."""
        for path, (owner, name) in self.package_files.items():
            if owner == toolchain:
                for _ in _copy(self.archive, path, folder / name):
                    pass


def contents_of(archive: Archive) -> Contents:
    """What is in an archive; raises StoreError where that is no bundle, or more than one."""
    prefix = f"{BUNDLE}/" if offline.RECORD in archive.sizes else ""
    if prefix + MANIFEST not in archive.sizes:
        raise refused(archive.label, f"it holds no {prefix + MANIFEST}")
    text = read_small(archive, prefix + MANIFEST, MAX_MANIFEST)
    try:
        manifest = Manifest.parse(text.decode())
        record = _record(archive) if prefix else None
    except ValueError as error:
        raise refused(archive.label, "its manifest cannot be read") from error
    found = Contents(archive, manifest, prefix, record)
    for problem in _problems(found):
        raise refused(archive.label, problem)
    return found


def _record(archive: Archive) -> Offline:
    return Offline.model_validate_json(read_small(archive, offline.RECORD, MAX_SMALL))


def _problems(found: Contents) -> Iterator[str]:
    manifest, sizes = found.manifest, found.archive.sizes
    if not NAME.fullmatch(manifest.name):
        yield f"its bundle is called {manifest.name[:100]!r}"
    for each in manifest.files:
        size = sizes.get(found.prefix + each.path)
        if size is None:
            yield f"{each.path[:200]!r} is missing"
        elif size != each.size:
            yield f"{each.path} has {size} bytes, its manifest says {each.size}"
    allowed = {found.prefix + name for name in found.bundle_files} | set(found.package_files)
    allowed |= {offline.RECORD, offline.SCRIPT, offline.README} if found.record else set()
    for name in sizes:
        if name not in allowed or (name in found.package_files and not found.record):
            yield f"it holds {name}, which does not belong to the bundle"


def _copy(archive: Archive, name: str, target: Path) -> Iterator[int]:
    """Write one file; gives the bytes of each piece that was written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as stream:
        for chunk in archive.chunks(name):
            yield stream.write(chunk)
