"""Where a stage leaves a model's weights, and what a bundle says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deployer.checkpoint import check_checkpoint
from deployer.gguf_file import inspect_gguf
from deployer.planning import ModelShape

GGUF = "model.gguf"
CHECKPOINT = "checkpoint"
"""A stage's folder holds one of these two: a GGUF file or the folder of a checkpoint."""


def weights_in(folder: Path) -> Path:
    """The GGUF file or the checkpoint folder that a stage left in `folder`."""
    return folder / GGUF if (folder / GGUF).is_file() else folder / CHECKPOINT


def shape_in(checkpoint: Path) -> ModelShape | None:
    """The shape a checkpoint's config.json describes; None where its architecture is not known."""
    text = (checkpoint / "config.json").read_text(encoding="utf-8")
    return ModelShape.from_config(json.loads(text))


def describe(weights: Path, parameters: int | None = None) -> dict[str, Any]:
    """Size and types of a GGUF file or a checkpoint folder, checked.

    `parameters` is the model's number of weights where the folder cannot tell it: quantized
    weights are packed, several to a number. `bits_per_weight` counts all that is stored, scales
    too; `kv_bytes_per_token` (bytes, at 16 bits) is None where the architecture is not known.
    Raises SourceError for a damaged file.
    """
    if weights.is_file():
        return inspect_gguf(weights).as_json()
    info = check_checkpoint(weights)
    shape = shape_in(weights)
    count = parameters or info.parameters
    return {
        "architecture": info.architecture,
        "types": info.types,
        "parameters": count,
        "tensor_bytes": info.tensor_bytes,
        "bits_per_weight": round(8 * info.tensor_bytes / count, 4),
        "kv_bytes_per_token": shape.kv_bytes_per_token if shape else None,
        "context_length": shape.context if shape else None,
    }
