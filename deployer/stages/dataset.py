"""A file of a hub's data set: what quantization is tuned on, or quality is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from deployer.recipe import Calibration, Quality
from deployer.stages import hub
from deployer.stages.context import StageContext
from deployer.stages.rows import write_text


def resolve(chosen: Calibration | Quality) -> dict[str, str] | None:
    """The data set's pinned commit; None where the section names none. Raises SourceError."""
    if chosen.dataset is None:
        return None
    section: hub.DatasetSection = "quality" if isinstance(chosen, Quality) else "calibration"
    revision = hub.resolve_dataset_revision(chosen.dataset, chosen.revision, section)
    return {"dataset": chosen.dataset, "revision": revision, "file": str(chosen.file)}


def fetch_calibration(
    pinned: Mapping[str, str], folder: Path, context: StageContext
) -> Mapping[str, Any]:
    """Download what `resolve` pinned into `folder`; `name` of the result is the file there."""
    return {"name": _download(pinned, "calibration", folder, context).name}


def fetch_evaluation(
    pinned: Mapping[str, str], folder: Path, context: StageContext
) -> Mapping[str, Any]:
    """The same, as plain text: of a file with rows, the values of its column `text`."""
    path = _download(pinned, "quality", folder, context)
    if path.suffix == ".txt":
        return {"name": path.name}
    text = path.with_suffix(".txt")
    with context.progress.step(f"read the rows of {pinned['file']}") as step:
        counted = write_text(path, text, ("text",), context, step)
    path.unlink()
    return {"name": text.name, **counted}


def _download(
    pinned: Mapping[str, str], section: hub.DatasetSection, folder: Path, context: StageContext
) -> Path:
    path = folder / f"{section}{PurePosixPath(pinned['file']).suffix.lower()}"
    with context.progress.step(f"fetch {pinned['dataset']} {pinned['file']}") as step:
        hub.download_dataset_file(pinned, section, path, context.home.cache / "huggingface", step)
    return path
