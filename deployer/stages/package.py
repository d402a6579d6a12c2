"""Package: the finished weights and all that belongs to them become one self-contained folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deployer import __version__
from deployer.artifacts import (
    FOLDER,
    MANIFEST,
    FileEntry,
    Manifest,
    file_digest,
    json_digest,
    list_files,
)
from deployer.durable import write_atomically
from deployer.planning import Plan
from deployer.stages.weights import GGUF
from deployer.store import link_or_copy

_FROM_CHECKPOINT = ("LICENSE*", "NOTICE*", "USE_POLICY*", "tokenizer*", "special_tokens_map.json",
                    "chat_template.jinja", "generation_config.json", "config.json")  # fmt: skip


def run(
    plan: Plan,
    weights: Path,
    checkpoint: Path | None,
    records: Mapping[str, Any],
    tools: Mapping[str, str],
    folder: Path,
    digest: Callable[[Path], str] = file_digest,
) -> Mapping[str, Any]:
    """Fill `folder` with a bundle. `records`: source, weights, quantization, quality, parity.

    `weights` is a GGUF file, which gets its tokenizer's files from the source `checkpoint` where
    there is one, or the folder of a checkpoint, which has all it needs but perhaps the licence.
    `digest` gives the SHA-256 of a file.
    """
    if weights.is_file():
        link_or_copy(weights, folder / GGUF)
    else:
        for path in sorted(weights.iterdir()):
            link_or_copy(path, folder / path.name)
    for pattern in _FROM_CHECKPOINT if checkpoint else ():
        for path in sorted(Path(str(checkpoint)).glob(pattern)):
            if not (folder / path.name).exists():
                link_or_copy(path, folder / path.name)
    write_atomically(folder / "README.md", _readme(plan, records))
    manifest = _manifest(plan, records, tools, folder, list_files(folder, digest))
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=1))
    return {
        "digest": manifest.digest,
        "size_bytes": manifest.size_bytes,
        "bits_per_weight": manifest.bits_per_weight,
        "quality": manifest.quality,
    }


def _manifest(
    plan: Plan,
    records: Mapping[str, Any],
    tools: Mapping[str, str],
    folder: Path,
    files: tuple[FileEntry, ...],
) -> Manifest:
    recipe = plan.recipe
    weights = {**records["weights"], **_as_loaded(plan, records)}
    load = recipe.quantization.load
    draft = Manifest(
        name=recipe.name,
        digest="",
        engine=recipe.target.engine,
        weights=GGUF if (folder / GGUF).is_file() else FOLDER,
        size_bytes=sum(entry.size for entry in files),
        bits_per_weight=weights["bits_per_weight"],
        files=files,
        recipe=recipe.model_dump(mode="json"),
        serve=recipe.serve.model_dump(mode="json"),
        source=dict(records["source"]),
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
        created_by=f"deployer {__version__}",
    )
    digest = json_digest(draft.model_dump(mode="json", exclude={"digest"}))
    return draft.model_copy(update={"digest": digest})


def _as_loaded(plan: Plan, records: Mapping[str, Any]) -> dict[str, Any]:
    """Bits a weight and types as they were in memory, where the engine quantizes while loading."""
    memory = records["quality"].get("memory")
    if not (memory and plan.recipe.quantization.while_loading):
        return {}
    return {name: memory[name] for name in ("bits_per_weight", "types")}


_BY_HAND = {
    "llama.cpp": f"llama-server -m {GGUF}",
    "vllm": "vllm serve .",
    "transformers": "transformers serve .",
}
"""How an engine is started in a bundle's folder."""


def _readme(plan: Plan, records: Mapping[str, Any]) -> str:
    quality = records["quality"]
    ratio = quality.get("perplexity_ratio", {}).get("value")
    compared = f", {ratio} times the 16-bit model's" if ratio else ""
    source = ", ".join(f"{key} {value}" for key, value in records["source"].items())
    loaded = _as_loaded(plan, records)
    bits = {**records["weights"], **loaded}["bits_per_weight"]
    counted = (
        "in memory; 16 in the files, quantized while loading"
        if loaded
        else ("stored ones counted with their scales")
    )
    return f"""# {plan.recipe.name}

A bundle for {plan.recipe.target.engine}, made by deployer {__version__}.

- Weights: {bits} bits each, {counted}
- Source: {source}
- Quality: perplexity {quality["perplexity"]["value"]}{compared}, over {quality["tokens"]} tokens of
  {quality["corpus"]} ({quality["method"]})

`manifest.json` has the digest of every file, the recipe, the tools and their versions.
Serve it with `deployer serve` and this folder, or without deployer:
`{_BY_HAND[plan.recipe.target.engine]}`.
"""
