"""The weights' own structure, by our bounded readers, before any native parser opens them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deployer.artifacts import FOLDER, Manifest
from deployer.checkpoint import check_checkpoint
from deployer.errors import Fault, SourceError
from deployer.gguf_file import inspect_gguf


def check_structure(root: Path, manifest: Manifest) -> list[Fault]:
    """Faults of GGUF and safetensors files; every listed file must be there, and regular."""
    return [*_gguf_files(root, manifest), *_checkpoint(root, manifest)]


def _gguf_files(root: Path, manifest: Manifest) -> Iterator[Fault]:
    for entry in manifest.files:
        path = root / entry.path
        if path.suffix == ".gguf":
            try:
                inspect_gguf(path)
            except SourceError as error:
                yield Fault(entry.path, error.message.removeprefix(f"{path} "))


def _checkpoint(root: Path, manifest: Manifest) -> Iterator[Fault]:
    if manifest.weights != FOLDER:
        return
    try:
        found = check_checkpoint(root)
    except SourceError as error:
        yield _where(error.message, root, manifest)
        return
    shards = sum(entry.path.endswith(".safetensors") for entry in manifest.files)
    if found.shards != shards:  # one that no index names would be opened by name all the same
        yield Fault("", f"of {shards} *.safetensors files the model has {found.shards}")


def _where(message: str, root: Path, manifest: Manifest) -> Fault:
    """A message about a path below `root` as the fault of the file it begins with."""
    for entry in manifest.files:
        path = str(root / entry.path)
        if message.startswith(f"{path} "):
            return Fault(entry.path, message.removeprefix(f"{path} "))
    return Fault("", message.replace(f"{root}/", ""))
