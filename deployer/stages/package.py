"""Package: the finished weights and all that belongs to them become one self-contained folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployer import __version__
from deployer.artifacts import MANIFEST, Manifest, json_digest, list_files
from deployer.planning import Plan
from deployer.store import link_or_copy, write_atomically

WEIGHTS = "model.gguf"
_FROM_CHECKPOINT = ("LICENSE*", "NOTICE*", "USE_POLICY*", "tokenizer*", "special_tokens_map.json",
                    "chat_template.jinja", "generation_config.json", "config.json")  # fmt: skip


def run(
    plan: Plan,
    weights: Path,
    checkpoint: Path | None,
    records: Mapping[str, Any],
    tools: Mapping[str, str],
    folder: Path,
) -> Mapping[str, Any]:
    """Fill `folder` with a bundle. `records`: source, gguf, quantization, quality, parity."""
    link_or_copy(weights, folder / WEIGHTS)
    for pattern in _FROM_CHECKPOINT if checkpoint else ():
        for path in sorted(Path(str(checkpoint)).glob(pattern)):
            link_or_copy(path, folder / path.name)
    write_atomically(folder / "README.md", _readme(plan, records))
    manifest = _manifest(plan, records, tools, folder)
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=1))
    return {
        "digest": manifest.digest,
        "size_bytes": manifest.size_bytes,
        "bits_per_weight": manifest.bits_per_weight,
        "quality": manifest.quality,
    }


def _manifest(
    plan: Plan, records: Mapping[str, Any], tools: Mapping[str, str], folder: Path
) -> Manifest:
    recipe = plan.recipe
    files = list_files(folder)
    gguf = records["gguf"]
    draft = Manifest(
        name=recipe.name,
        digest="",
        engine=recipe.target.engine,
        weights=WEIGHTS,
        size_bytes=sum(entry.size for entry in files),
        bits_per_weight=gguf["bits_per_weight"],
        files=files,
        recipe=recipe.model_dump(mode="json"),
        serve=recipe.serve.model_dump(mode="json"),
        source=dict(records["source"]),
        quantization={
            **recipe.quantization.model_dump(mode="json"),
            **records["quantization"],
            "types": gguf["types"],
            "kv_bytes_per_token": gguf["kv_bytes_per_token"],
            "context_length": gguf["context_length"],
        },
        quality=dict(records["quality"]),
        parity=dict(records["parity"]),
        tools=dict(tools),
        created_by=f"deployer {__version__}",
    )
    digest = json_digest(draft.model_dump(mode="json", exclude={"digest"}))
    return draft.model_copy(update={"digest": digest})


def _readme(plan: Plan, records: Mapping[str, Any]) -> str:
    quality = records["quality"]
    ratio = quality.get("perplexity_ratio", {}).get("value")
    compared = f", {ratio} times the 16-bit model's" if ratio else ""
    source = ", ".join(f"{key} {value}" for key, value in records["source"].items())
    return f"""# {plan.recipe.name}

A bundle for {plan.recipe.target.engine}, made by deployer {__version__}.

- Weights: `{WEIGHTS}`, {records["gguf"]["bits_per_weight"]} bits a weight
- Source: {source}
- Quality: perplexity {quality["perplexity"]["value"]}{compared}, over {quality["tokens"]} tokens of
  {quality["corpus"]} ({quality["method"]})

`manifest.json` has the digest of every file, the recipe, the tools and their versions.
Serve it with `deployer serve` and this folder, or with any llama.cpp:
`llama-server -m {WEIGHTS}`.
"""
