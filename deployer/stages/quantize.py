"""Quantize: 16-bit weights become smaller; their true size and every substitution is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployer.command import Command
from deployer.errors import StageError
from deployer.quantizers import CalibrationSet, QuantizeJob, choose_quantizer
from deployer.stages.context import StageContext
from deployer.stages.disjoint import require_disjoint
from deployer.stages.parity import require_same_files
from deployer.stages.weights import describe
from deployer.store import require_space

IMATRIX = "imatrix.gguf"
REPORTED = ("samples", "tokens", "layers_quantized", "layers_ignored")
"""What of a worker's response is kept."""
_CHUNKS = re.compile(r"computing over (\d+) chunks")


def run(job: QuantizeJob, evaluation_text: Path, context: StageContext) -> Mapping[str, Any]:
    """Quantize `job.source` as its recipe says; see `QuantizeJob` for what its paths are.

    Raises StageError where calibration and evaluation text overlap, or a weight is not finite.
    """
    wanted = job.quantization
    quantizer = choose_quantizer(wanted, job.device).quantizer
    if job.calibration:
        require_disjoint(job.calibration.path, evaluation_text, context)
    before = describe(job.source)
    require_space(job.target.parent, before["tensor_bytes"], "quantizing")
    context.toolchain(quantizer.toolchain(job.device))
    with context.progress.step(f"quantize to {wanted.label} with {quantizer.tool}") as step:
        report, log = context.run(quantizer.command(job), step)
    info = describe(job.target, before["parameters"])
    parity: dict[str, Any] = {}
    if job.target.is_dir():  # the GGUF tools refuse weights that are not finite themselves
        context.require_finite(job.target)
        parity = require_same_files(job.source, job.target)
    substitutions = quantizer.substitutions(report, log)
    if substitutions:
        context.progress.note(
            f"{len(substitutions)} tensors got another type than asked, for example "
            f"{substitutions[0]['tensor']}: {substitutions[0]['why']}"
        )
    return {
        "weights": info,
        "tool": quantizer.tool,
        "format": quantizer.format,
        "substitutions": substitutions,
        "parity": parity,
        "report": {key: report[key] for key in REPORTED if key in report},
    }


def make_imatrix(
    calibration: CalibrationSet,
    evaluation_text: Path,
    source: Path,
    folder: Path,
    context: StageContext,
) -> Mapping[str, Any]:
    """Measure which weights matter (llama-imatrix), on the calibration set alone.

    Raises StageError where it overlaps the evaluation text, is no plain text or is too short.
    """
    if calibration.kind != "text":
        raise StageError(
            "an importance matrix is made of plain text, not of chats",
            "Set calibration.text, or calibration.file to a .txt file.",
        )
    require_disjoint(calibration.path, evaluation_text, context)
    context.toolchain("llama-cpp-native")
    arguments = (
        "-m", str(source), "-f", str(calibration.path), "-o", str(folder / IMATRIX),
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
