"""Quantize: 16-bit GGUF -> smaller GGUF, with its true size and every type substitution told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployer.command import Command
from deployer.errors import StageError
from deployer.gguf_file import inspect_gguf
from deployer.quantizers import choose_quantizer
from deployer.recipe import Calibration, Quantization
from deployer.stages.context import StageContext, read_text
from deployer.store import require_space

GGUF = "model.gguf"
IMATRIX = "imatrix.gguf"
_LONG_LINE = 40
_CHUNKS = re.compile(r"computing over (\d+) chunks")


def run(
    quantization: Quantization,
    source: Path,
    imatrix: Path | None,
    folder: Path,
    context: StageContext,
) -> Mapping[str, Any]:
    """Quantize the GGUF `source` as the recipe says."""
    quantizer = choose_quantizer(quantization)
    target = folder / GGUF
    require_space(folder, source.stat().st_size, "quantizing")
    command = quantizer.command(quantization, source, target, imatrix)
    context.toolchain(quantizer.toolchain)
    with context.progress.step(f"quantize to {quantization.scheme}") as step:
        report, log = context.run(command, step)
    info = inspect_gguf(target)
    substitutions = quantizer.substitutions(report, log)
    if substitutions:
        context.progress.note(
            f"{len(substitutions)} tensors got another type than asked, for example "
            f"{substitutions[0]['tensor']}: {substitutions[0]['why']}"
        )
    return {"gguf": info.as_json(), "tool": quantizer.tool, "substitutions": substitutions}


def make_imatrix(
    calibration: Calibration,
    text: Path,
    evaluation_text: Path,
    source: Path,
    folder: Path,
    context: StageContext,
) -> Mapping[str, Any]:
    """Measure on `text` which weights matter (llama-imatrix); never on the evaluation text."""
    require_disjoint(text, evaluation_text)
    context.toolchain("llama-cpp-native")
    arguments = (
        "-m", str(source), "-f", str(text), "-o", str(folder / IMATRIX),
        "-c", str(calibration.length), "--chunks", str(calibration.samples), "--no-ppl",
    )  # fmt: skip
    with context.progress.step("importance matrix") as step:
        _, log = context.run(Command("llama-cpp-native", "llama-imatrix", arguments), step)
    found = _CHUNKS.search(log)
    if not (folder / IMATRIX).is_file():
        raise StageError(
            "llama-imatrix wrote nothing: the calibration text may be too short",
            f"It needs {calibration.samples} x {calibration.length} tokens.",
        )
    used = int(found.group(1)) if found else 0
    if used < calibration.samples:
        raise StageError(
            f"the calibration text gives {used} chunks of {calibration.length} tokens; the recipe "
            f"asks for {calibration.samples}",
            "Give a longer calibration.text, or lower calibration.samples.",
        )
    return {"chunks": used}


def require_disjoint(calibration: Path, evaluation: Path) -> None:
    """Raise StageError where the two texts share a line of prose; compares hashes of lines."""
    shared = _lines(calibration) & _lines(evaluation)
    if shared:
        raise StageError(
            f"the calibration text and the evaluation text share {len(shared)} lines, for "
            f"example: {min(shared)[:60]!r}",
            "Quality measured on calibration text looks better than it is: use another text.",
        )


def _lines(path: Path) -> set[str]:
    lines = (" ".join(line.split()) for line in read_text(path).splitlines())
    return {line for line in lines if len(line) >= _LONG_LINE}
