"""Package: the finished weights and all that belongs to them become one self-contained folder.

The manifest is written last, over all other files; docs/bundle.md says what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from deployer import __version__
from deployer.artifacts import (
    FOLDER,
    MANIFEST,
    SBOM,
    SIGNATURE,
    SUMS,
    FileEntry,
    Manifest,
    file_digest,
    list_files,
)
from deployer.durable import write_atomically
from deployer.engines import ModelToServe, engine_named
from deployer.errors import PlanError
from deployer.planning import Plan
from deployer.recipe import Serve
from deployer.sbom import Toolchain
from deployer.sbom import render as render_sbom
from deployer.stages import licence, readme
from deployer.stages.weights import GGUF
from deployer.store import link_or_copy
from deployer.toolchains.specs import LOCKS, spec_named

_FROM_CHECKPOINT = (*licence.FILES, "tokenizer*", "special_tokens_map.json",
                    "chat_template.jinja", "generation_config.json", "config.json")  # fmt: skip
_OURS = (MANIFEST, SBOM, SUMS, SIGNATURE, readme.NAME)
"""Files of a bundle that are never taken over: the source may have been a bundle itself."""


def run(
    plan: Plan,
    weights: Path,
    checkpoint: Path | None,
    records: Mapping[str, Any],
    tools: Mapping[str, str],
    folder: Path,
    digest: Callable[[Path], str] = file_digest,
) -> Mapping[str, Any]:
    """Fill `folder` with a bundle. `records`: source, weights, calibration, quantization, quality,
    parity, observed, as the manifest has them.

    `weights` is a GGUF file, which gets its tokenizer's files from the source `checkpoint` where
    there is one, or the folder of a checkpoint, which has all it needs but perhaps the licence.
    `digest` gives the SHA-256 of a file.
    """
    _gather(weights, checkpoint, folder)
    named = licence.declared(checkpoint) if checkpoint else None
    draft = _draft(plan, records, tools, named, list_files(folder, digest))
    draft = draft.model_copy(update={"launch": _launches(draft, plan.recipe.serve)})
    write_atomically(folder / SBOM, render_sbom(draft, _toolchains(plan)))
    write_atomically(folder / readme.NAME, readme.render(draft))
    write_atomically(folder / SUMS, _sums(list_files(folder, digest)))
    files = list_files(folder, digest)
    size = sum(entry.size for entry in files)
    manifest = draft.model_copy(update={"files": files, "size_bytes": size}).sealed()
    write_atomically(folder / MANIFEST, manifest.text())
    return {
        "digest": manifest.digest,
        "size_bytes": manifest.size_bytes,
        "bits_per_weight": manifest.bits_per_weight,
        "quality": manifest.quality,
    }


def _gather(weights: Path, checkpoint: Path | None, folder: Path) -> None:
    """Link the weights, and what only the source has, into the bundle."""
    if weights.is_file():
        link_or_copy(weights, folder / GGUF)
    else:
        for path in sorted(weights.iterdir()):
            if path.name not in _OURS:
                link_or_copy(path, folder / path.name)
    for pattern in _FROM_CHECKPOINT if checkpoint else ():
        for path in sorted(Path(str(checkpoint)).glob(pattern)):
            if not (folder / path.name).exists():
                link_or_copy(path, folder / path.name)


def _draft(
    plan: Plan,
    records: Mapping[str, Any],
    tools: Mapping[str, str],
    named: str | None,
    files: tuple[FileEntry, ...],
) -> Manifest:
    """The manifest of the files that came so far, without launch, digest and seal."""
    recipe = plan.recipe
    weights = {**records["weights"], **_as_loaded(plan, records)}
    load = recipe.quantization.load
    return Manifest(
        name=recipe.name,
        digest="",
        engine=recipe.target.engine,
        weights=GGUF if any(entry.path == GGUF for entry in files) else FOLDER,
        size_bytes=0,
        bits_per_weight=weights["bits_per_weight"],
        files=files,
        recipe=recipe.model_dump(mode="json"),
        plan={"device": plan.device, "stages": {stage.name: stage.key for stage in plan.stages}},
        serve=recipe.serve.model_dump(mode="json"),
        source={**records["source"], **({"license": named} if named else {})},
        calibration=records["calibration"],
        quantization={
            **recipe.quantization.model_dump(mode="json"),
            **records["quantization"],
            **({"load": load} if load else {}),
            "types": weights["types"],
            "kv_bytes_per_token": weights["kv_bytes_per_token"],
            "context_length": weights["context_length"],
        },
        quality=dict(records["quality"]),
        parity=dict(records["parity"]),
        tools=dict(tools),
        observed=dict(records["observed"]),
        created_by=f"deployer {__version__}",
    )


def _as_loaded(plan: Plan, records: Mapping[str, Any]) -> dict[str, Any]:
    """Bits a weight and types as they were in memory, where the engine quantizes while loading."""
    memory = records["quality"].get("memory")
    if not (memory and plan.recipe.quantization.while_loading):
        return {}
    return {name: memory[name] for name in ("bits_per_weight", "types")}


def _launches(draft: Manifest, serve: Serve) -> tuple[dict[str, Any], ...]:
    """How the engine's own program serves the bundle, started in its folder.

    On loopback, since no key comes with it; the number of threads is left to the program unless
    the recipe sets it. Empty where the engine has no such program.
    """
    default = Serve()
    settings = serve.model_copy(update={"host": default.host, "port": serve.port or default.port})
    model = ModelToServe.of(draft, Path(draft.weights), draft.plan["device"])
    try:
        made = engine_named(draft.engine).portable(model, settings, serve.threads or 0)
    except PlanError:
        return ()
    return (
        {
            "program": list(made.program),
            "arguments": list(made.arguments),
            "env": dict(made.env),
            "release": made.release,
            "image": made.image,
            "key_variable": made.key_variable,
        },
    )


def _toolchains(plan: Plan) -> list[Toolchain]:
    """The locks of the toolchains that the stages enter; what scored the model serves it."""
    serving = engine_named(plan.recipe.target.engine).scoring(plan.device).toolchain
    made = []
    for name in plan.toolchains:
        spec = spec_named(name)
        source = (LOCKS / spec.source.lock).read_text(encoding="utf-8") if spec.source else ""
        lock = spec.lock_path.read_text(encoding="utf-8")
        made.append(Toolchain(name, lock, source, serves=name == serving))
    return made


def _sums(files: Iterable[FileEntry]) -> str:
    """The files' digests in the form that sha256sum reads."""
    return "".join(f"{entry.sha256}  {entry.path}\n" for entry in files)
