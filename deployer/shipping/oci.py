"""A bundle as an OCI image layout: a folder that container tools push to a registry and mount.

    oci-layout                 the version of the layout
    index.json                 names the image by its tag
    blobs/sha256/DIGEST        the image's manifest, its configuration and its layers

The image holds the bundle's files below /models and nothing else: that is where KServe looks for
a model. Every file of weights is a layer of its own and all small files are one more, so that a
registry keeps weights once that several bundles share. Layers are plain tars without times and
owners: the same bundle gives the same digest. They are not compressed, since weights do not shrink.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deployer.artifacts import (
    MANIFEST,
    SIGNATURE,
    Bundle,
    FileEntry,
    Manifest,
    file_digest,
)
from deployer.durable import flush
from deployer.errors import StoreError
from deployer.progress import Progress, Step
from deployer.shipping.plain import header, require_space

MODELS = "models"
"""The folder of the image that holds the bundle."""
PLATFORM = {"architecture": "amd64", "os": "linux"}
"""What the image says it runs on. Its files run nowhere, but every tool asks for a platform."""
LAYERS_OF_WEIGHTS = 64
"""Container tools stack about 120 layers at most; more files of weights share layers."""
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
DIGEST_LABEL = "deployer.bundle.digest"
_EPOCH = "1970-01-01T00:00:00Z"  # the time of a build would change the digest
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Written:
    """An image layout on disk: `digest` is the image's, `bytes` the size of all its blobs."""

    name: str
    tag: str
    digest: str
    bytes: int


@dataclass(frozen=True)
class _Blob:
    kind: str
    digest: str
    size: int

    def descriptor(self, **more: Any) -> dict[str, Any]:
        return {"mediaType": self.kind, "digest": self.digest, "size": self.size, **more}


@dataclass
class _Blobs:
    """The blobs of a layout in the making; `step` is told how many bytes of `total` there are."""

    folder: Path
    step: Step
    total: int
    written: int = 0

    def add(self, kind: str, chunks: Iterable[bytes], note: str | None = None) -> _Blob:
        """Store what `chunks` give, under its digest."""
        partial = self.folder / ".partial"
        digest, size = hashlib.sha256(), 0
        with partial.open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                self.step.update(done=self.written + size, total=self.total, note=note)
        flush(partial)
        partial.replace(self.folder / digest.hexdigest())
        self.written += size
        return _Blob(kind, f"sha256:{digest.hexdigest()}", size)

    def add_json(self, kind: str, value: Mapping[str, Any]) -> _Blob:
        return self.add(kind, [_json(value)])


def write(bundle: Bundle, folder: Path, progress: Progress) -> Written:
    """Write `bundle` as an image layout to `folder`, which must not be there yet.

    Files are streamed and checked against the manifest on their way. The folder appears whole or
    not at all. Raises StoreError where the disk is full or a file is not what the manifest says.
    """
    layers = _layers(bundle)
    total = sum(_tar_size(layer) for layer in layers)
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
            shutil.rmtree(leftover)  # of an export that was killed
        require_space(folder.parent, total, "the image layout")
        with progress.step("Writing the image layout") as step:
            written = _fill(partial, bundle, layers, step, total)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StoreError(
            f"cannot write the image layout to {folder}: {error.strerror or error}",
            "Check permissions and free space, or name another --output.",
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return written


def _fill(
    root: Path, bundle: Bundle, layers: Sequence[Sequence[FileEntry]], step: Step, total: int
) -> Written:
    manifest, tag = bundle.manifest, bundle.manifest.digest[:12]
    folder = root / "blobs" / "sha256"
    folder.mkdir(parents=True)
    blobs = _Blobs(folder, step, total)
    made = [blobs.add(LAYER_TYPE, _tar(bundle.root, layer), layer[0].path) for layer in layers]
    labels = described(manifest)
    config = blobs.add_json(CONFIG_TYPE, _config(made, layers, labels))
    image = blobs.add_json(
        MANIFEST_TYPE,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config.descriptor(),
            "layers": [blob.descriptor() for blob in made],
            "annotations": labels,
        },
    )
    named = {"org.opencontainers.image.ref.name": tag}
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [image.descriptor(platform=PLATFORM, annotations=named)],
    }
    (root / "index.json").write_bytes(_json(index))
    (root / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    for path in (root / "index.json", root / "oci-layout", folder, root):
        flush(path)
    return Written(manifest.name, tag, image.digest, blobs.written)


def described(manifest: Manifest) -> dict[str, str]:
    """What the image says of itself; tools show it without reading a layer."""
    source = manifest.source
    known = {
        "org.opencontainers.image.title": manifest.name,
        "org.opencontainers.image.version": manifest.digest[:12],
        "org.opencontainers.image.revision": source.get("revision"),
        "org.opencontainers.image.licenses": source.get("license"),
        DIGEST_LABEL: f"sha256:{manifest.digest}",
    }
    return {key: str(value) for key, value in known.items() if value}


def _config(
    made: Sequence[_Blob], layers: Sequence[Sequence[FileEntry]], labels: Mapping[str, str]
) -> dict[str, Any]:
    told = [f"{layer[0].path}" + (" and others" if len(layer) > 1 else "") for layer in layers]
    return {
        "created": _EPOCH,
        **PLATFORM,
        "config": {"Labels": dict(labels)},
        # Uncompressed, a layer's digest is also that of its tar, which the configuration names.
        "rootfs": {"type": "layers", "diff_ids": [blob.digest for blob in made]},
        "history": [{"created": _EPOCH, "created_by": f"deployer: {what}"} for what in told],
    }


def _layers(bundle: Bundle) -> list[tuple[FileEntry, ...]]:
    """The bundle's files by layer: weights first, all small files last."""
    manifest = bundle.manifest
    weights = [entry for entry in manifest.files if manifest.holds_weights(entry)]
    small = [entry for entry in manifest.files if not manifest.holds_weights(entry)]
    small += [_entry(bundle.root, name) for name in (MANIFEST, SIGNATURE)
              if name == MANIFEST or (bundle.root / name).exists()]  # fmt: skip
    each = max(1, math.ceil(len(weights) / LAYERS_OF_WEIGHTS))
    shared = [tuple(weights[first : first + each]) for first in range(0, len(weights), each)]
    return [*shared, tuple(sorted(small, key=lambda entry: entry.path))]


def _entry(root: Path, name: str) -> FileEntry:
    path = root / name
    return FileEntry(path=name, size=path.stat().st_size, sha256=file_digest(path))


def _tar(root: Path, entries: Sequence[FileEntry]) -> Iterator[bytes]:
    """A tar of files below /models, in pieces of about a mebibyte."""
    for folder in _folders(entries):
        yield header(folder, tarfile.DIRTYPE, 0, 0o755)
    for entry in entries:
        yield header(f"{MODELS}/{entry.path}", tarfile.REGTYPE, entry.size, 0o644)
        yield from _content(root / entry.path, entry)
        yield bytes(-entry.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _tar_size(entries: Sequence[FileEntry]) -> int:
    """About the size of such a tar, in bytes."""
    return sum(entry.size + 2 * tarfile.BLOCKSIZE for entry in entries)


def _folders(entries: Sequence[FileEntry]) -> list[str]:
    """Every folder of the image that holds one of the files, parents first."""
    found = {
        parent
        for entry in entries
        for parent in PurePosixPath(MODELS, entry.path).parents
        if parent != PurePosixPath(".")
    }
    return sorted(str(folder) for folder in found)


def _content(path: Path, entry: FileEntry) -> Iterator[bytes]:
    """A file's bytes; raises StoreError where they are not what the manifest says."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            yield chunk
    if size != entry.size or digest.hexdigest() != entry.sha256:
        raise StoreError(
            f"{path} is not the file that the bundle's manifest describes",
            "`deployer verify` names all that is wrong with it. Build the bundle again.",
        )


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
