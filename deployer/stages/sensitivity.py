"""Sensitivity: what rounding each part of the model to each type costs, measured in llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployer.errors import StageError
from deployer.quantizers import CalibrationSet
from deployer.stages.context import StageContext, read_text
from deployer.store import require_space

REQUESTED = ("types", "groups", "window", "windows")
"""What of the stage's settings the worker is asked with."""


def run(
    source: Path,
    calibration: CalibrationSet,
    imatrix: Path | None,
    settings: Mapping[str, Any],
    folder: Path,
    context: StageContext,
) -> Mapping[str, Any]:
    """Measure the 16-bit GGUF file `source` on the calibration text; see `measure_sensitivity`.

    Raises StageError where the calibration set is no plain text.
    """
    if calibration.kind != "text":
        raise StageError(
            "sensitivity is measured on plain text, not on chats",
            "Set calibration.text, or calibration.file to a .txt file.",
        )
    require_space(folder, source.stat().st_size, "a copy of the model to round parts of")
    request = {
        "model": str(source),
        "text": read_text(calibration.path),
        "folder": str(folder),
        "imatrix": str(imatrix) if imatrix else None,
        **{name: settings[name] for name in REQUESTED if name in settings},
    }
    context.toolchain("llama-cpp")
    with context.progress.step("measure the sensitivity of each part") as step:
        return context.work("measure_sensitivity", "llama-cpp", request, step)
