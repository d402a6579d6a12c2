"""Convert: a checkpoint becomes a 16-bit GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployer.stages.context import StageContext, refuse_infinite
from deployer.stages.parity import QUESTION
from deployer.stages.weights import GGUF, describe


def run(
    checkpoint: Path, kind: str, name: str, folder: Path, context: StageContext
) -> Mapping[str, Any]:
    """Convert `checkpoint` to a GGUF of type `kind` (f16); `name` is written into it.

    The result holds what the checkpoint's tokenizer answers to the parity question, asked in the
    converter's process, since importing torch again takes longer. Raises StageError where weights
    are not finite: what bf16 holds may be too large for f16.
    """
    target = folder / GGUF
    tree = context.toolchain("convert").source
    request = {
        "source_tree": str(tree),
        "checkpoint": str(checkpoint),
        "out": str(target),
        "type": kind,
        "name": name,
        **QUESTION,
    }
    with context.progress.step(f"convert to {kind} GGUF") as step:
        converted = context.work("convert_checkpoint", "convert", request, step)
    refuse_infinite(converted["scan"])
    return {"weights": describe(target), "parity": converted["parity"]}
