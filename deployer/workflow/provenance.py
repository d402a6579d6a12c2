"""What a build knows of itself once its model is measured, as the bundle's manifest has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deployer.artifacts import Artifact
from deployer.loadtest import host

if TYPE_CHECKING:
    from deployer.workflow.execution import Execution


def records(run: Execution, weights: Artifact, quality: Mapping[str, Any]) -> dict[str, Any]:
    """What `stages.package.run` is given of a build whose finished weights are `weights`."""
    source = run.plan.source
    return {
        "source": {"kind": source.kind, **source.identity},
        "weights": weights.info["weights"],
        "calibration": tuned_on(run, weights),
        "quantization": {
            "tool_used": weights.info.get("tool"),
            "format": weights.info.get("format"),
            "substitutions": weights.info.get("substitutions", []),
            **({"calibration": run.pinned("calibration")} if run.plan.stage("calibration") else {}),
            **weights.info.get("report", {}),
        },
        "quality": dict(quality),
        "parity": run.parity or weights.info.get("parity", {}),
        "observed": observed(run),
    }


def tuned_on(run: Execution, weights: Artifact) -> dict[str, Any] | None:
    """The calibration set that the weights depend on: name, sha256, samples, length (tokens).

    `samples` counts what the quantizer took where it tells that. None where it read none.
    """
    wanted = run.plan.recipe.quantization
    if not (run.plan.stage("quantize") and wanted.reads_calibration):
        return None
    chosen = run.calibration_set
    name = chosen.path.name
    if run.plan.stage("calibration"):
        pinned = run.pinned("calibration")
        name = f"{pinned['dataset']} {pinned['file']}"
    samples, length = chosen.samples, chosen.length
    if wanted.mixed and not (wanted.calibrated or wanted.imatrix):  # only the table was measured
        samples, length = wanted.mixed.windows, wanted.mixed.WINDOW
    return {
        "name": name,
        "sha256": run.digests(chosen.path),
        "samples": weights.info.get("report", {}).get("samples", samples),
        "length": length,
    }


def observed(run: Execution) -> dict[str, Any]:
    """What another build of the same bundle may see otherwise; stages found ready have no time."""
    machine = host.describe()
    ran = (outcome for outcome in run.outcomes if not outcome.cached)
    return {
        "scoring_peak_bytes": run.scoring_peak,
        "seconds": {outcome.name: round(outcome.seconds, 1) for outcome in ran},
        "machine": f"{machine.cpu}, {machine.cores} cores",
    }
