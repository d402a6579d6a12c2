"""Calibration: the file of a hub's data set that quantization is tuned on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from deployer.recipe import Calibration
from deployer.stages import hub
from deployer.stages.context import StageContext


def resolve(calibration: Calibration) -> dict[str, str] | None:
    """The data set's pinned commit; None where the set is a file. Raises SourceError."""
    if calibration.dataset is None:
        return None
    revision = hub.resolve_dataset_revision(calibration.dataset, calibration.revision)
    return {
        "dataset": calibration.dataset,
        "revision": revision,
        "file": str(calibration.file),
    }


def run(pinned: Mapping[str, str], folder: Path, context: StageContext) -> Mapping[str, Any]:
    """Download what `resolve` pinned into `folder`; `name` of the result is the file there."""
    name = f"calibration{PurePosixPath(pinned['file']).suffix}"
    with context.progress.step(f"fetch {pinned['dataset']} {pinned['file']}") as step:
        hub.download_dataset_file(
            pinned["dataset"],
            pinned["revision"],
            pinned["file"],
            folder / name,
            context.home.cache / "huggingface",
            step,
        )
    return {"name": name}
