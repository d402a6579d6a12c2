"""Evaluate: measure a bundle's quality again, on more text or with another rule than its build."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deployer import report
from deployer.artifacts import MANIFEST, SBOM, Bundle, json_digest
from deployer.durable import write_atomically
from deployer.errors import UsageError
from deployer.home import Home
from deployer.memo import DigestMemo
from deployer.planning import PlannedStage
from deployer.planning.mixing import Sensitivity, curve
from deployer.progress import Progress
from deployer.quality import in_words
from deployer.recipe import Quality, Recipe, override_recipe
from deployer.recipe.document import SUFFIXES
from deployer.stages import evaluate as stage
from deployer.stages.disjoint import require_disjoint
from deployer.workflow.building import build
from deployer.workflow.bundles import find_bundle
from deployer.workflow.execution import Execution
from deployer.workflow.planned import plan_recipe, this_machine

RESULT, PAGE = "quality.json", "quality.html"
_READ = ("source", "calibration", "quality")
"""Sections of a recipe whose files are read."""
_DECIDES = ("*.gguf", "*.safetensors", "*.json", "*.jinja", "*.model")
"""Files of a bundle that its scores depend on."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a bundle; `missed` says in words which limits do not hold.

    `kld` is the KL divergence of each token in nats, empty without a 16-bit model; `sensitivity`
    is what a bundle of mixed precision was chosen from.
    """

    bundle: Bundle
    record: dict[str, Any]
    limits: Quality
    missed: tuple[str, ...]
    kld: tuple[float, ...]
    sensitivity: dict[str, Any] | None
    folder: Path
    seconds: float

    def describe(self) -> list[str]:
        """The result in words."""
        verdict = "Every limit of the recipe holds." if not self.missed else (
            f"Not good enough: {'; '.join(self.missed)}."
        )  # fmt: skip
        return [*in_words(self.record), verdict, f"Report: {self.folder / PAGE}"]

    def as_json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.bundle.root),
            "name": self.bundle.manifest.name,
            "digest": self.bundle.manifest.digest,
            "quality": self.record,
            "limits": self.limits.model_dump(mode="json"),
            "passed": not self.missed,
            "missed": list(self.missed),
            "seconds": round(self.seconds, 3),
            "folder": str(self.folder),
        }


def evaluate(
    what: str | None, overrides: Sequence[str], home: Home, progress: Progress
) -> Evaluation:
    """Score the newest bundle, a bundle by folder or name, or a recipe that is built first.

    Of a bundle, overrides change `quality.*` alone. It is compared with its 16-bit model, which is
    fetched and scored where that was not done before with the same text and windows.
    """
    started = time.monotonic()
    bundle, recipe = _bundle_and_recipe(what, overrides, home, progress)
    machine = this_machine(recipe, home)
    run = Execution(plan_recipe(recipe, machine, home), machine, home, progress)
    baseline = run.sixteen_bit(run.fetch())
    if recipe.quantization.reads_calibration:
        require_disjoint(run.calibration_set.path, run.evaluation_text, run.context)
    reference = run.score_baseline(baseline) if run.plan.stage("baseline") else None
    planned = _of_bundle(run.planned("evaluate"), bundle, home)
    scored, _ = run.store.get_or_build(
        "evaluate",
        planned.key,
        lambda f: run.score(planned, bundle.weights, f, reference, "score the bundle"),
        progress,
    )
    record = run.quality(baseline, scored.info, reference)
    missed = tuple(stage.missed(record, recipe.quality))
    named = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-quality-{bundle.manifest.name}"
    done = Evaluation(
        bundle,
        record,
        recipe.quality,
        missed,
        tuple(scored.info["kld"] or ()),
        _sensitivity(run, bundle, record),
        home.evaluations / f"{named}-{secrets.token_hex(3)}",
        time.monotonic() - started,
    )
    _store(done)
    return done


def _bundle_and_recipe(
    what: str | None, overrides: Sequence[str], home: Home, progress: Progress
) -> tuple[Bundle, Recipe]:
    if what is not None and Path(what).suffix in SUFFIXES:
        bundle = build(Path(what), overrides, home, progress).bundle
        return bundle, override_recipe(bundle.manifest.recipe, (), _READ)
    bundle = find_bundle(what, home)
    for override in overrides:
        if not override.startswith("quality."):
            raise UsageError(
                f"--set {override} would need another bundle",
                "Only quality.* can be changed when a bundle is evaluated; name a recipe to "
                "build another.",
            )
    return bundle, override_recipe(bundle.manifest.recipe, overrides, _READ)


def _of_bundle(planned: PlannedStage, bundle: Bundle, home: Home) -> PlannedStage:
    """The planned scoring, keyed by what really lies in the bundle's folder."""
    memo = DigestMemo.load(home.cache / "digests.json")
    paths = sorted({path for pattern in _DECIDES for path in bundle.root.glob(pattern)})
    digests = [memo.digest(path) for path in paths if path.name not in (MANIFEST, SBOM)]
    return replace(planned, key=json_digest({"weights": digests, "as": planned.key}))


def _sensitivity(run: Execution, bundle: Bundle, record: dict[str, Any]) -> dict[str, Any] | None:
    """What the bundle's mix was chosen from, and where the bundle itself came to lie."""
    planned = run.plan.stage("sensitivity")
    found = run.store.find("sensitivity", planned.key) if planned else None
    if found is None:
        return None
    table = Sensitivity.from_report(found.info)
    bits, mean = bundle.manifest.bits_per_weight, record["kl_divergence"]["mean"]
    here = {"name": bundle.manifest.name, "bits_per_weight": bits, "kl_divergence": mean}
    return {
        "groups": found.info["groups"],
        "curve": [mix.as_json(table) for mix in curve(table)],
        "references": [here],
    }


def _store(done: Evaluation) -> None:
    done.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(done.folder / RESULT, json.dumps(done.as_json(), indent=1))
    name, limits = done.bundle.manifest.name, done.limits.model_dump()
    page = report.quality_html(
        done.record, done.sensitivity, name=name, limits=limits, kld=done.kld
    )
    write_atomically(done.folder / PAGE, page)
