"""A plan being carried out: each stage is run, or found in the store."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from deployer.artifacts import Artifact, Bundle, Digests, file_digest
from deployer.engines import engine_named
from deployer.home import Home
from deployer.planning import Machine, Plan, PlannedStage, check_shape
from deployer.planning.mixing import Mix, Sensitivity, choose_mix, mixed_job
from deployer.progress import Progress
from deployer.quantizers import CalibrationSet, QuantizeJob
from deployer.stages import (
    convert,
    dataset,
    disjoint,
    evaluate,
    fetch,
    package,
    parity,
    quantize,
    sensitivity,
)
from deployer.stages.context import StageContext
from deployer.stages.weights import CHECKPOINT, GGUF, shape_in, weights_in
from deployer.store import Store
from deployer.workflow import provenance
from deployer.workflow.planned import calibration_file, evaluation_text


@dataclass(frozen=True)
class StageOutcome:
    """How one stage went: `seconds` it took, and whether its output was there already."""

    name: str
    seconds: float
    cached: bool


def folder_of(stage: PlannedStage) -> str:
    """The store's folder of a stage: those that run the same code share theirs, and results."""
    return "convert" if stage.name == "gguf" else stage.name


class Execution:
    """One plan under way; `outcomes` and `tools` (name -> version) grow with every stage.

    `parity` says what was compared of a converted model, `scoring_peak` how many bytes of memory
    the process held that scored the finished weights (None where nothing told).
    """

    def __init__(self, plan: Plan, machine: Machine, home: Home, progress: Progress) -> None:
        self.plan = plan
        self.machine = machine
        self.context = StageContext(home, progress, home.logs / f"build-{plan.recipe.name}")
        self.digests = Digests()  # a bundle's weights are the stage's: hashed once
        self.store = Store(home.store, self.digests)
        self.bundles = Store(home.bundles, self.digests)
        self.outcomes: list[StageOutcome] = []
        self.tools = {"python": platform.python_version()}
        self.parity: dict[str, Any] = {}
        self.scoring_peak: int | None = None

    def finished_bundle(self) -> Bundle | None:
        """The bundle, when this very plan was built before."""
        artifact = self.bundles.find(self.plan.recipe.name, self.planned("package").key)
        if artifact is None:
            return None
        self.outcomes = [StageOutcome(stage.name, 0.0, True) for stage in self.plan.stages]
        self.bundles.touch(artifact)
        return Bundle.read(artifact.root)

    def all_stages(self) -> Bundle:
        """Everything, up to the bundle; raises QualityGateError where the model misses a limit."""
        fetched = self.fetch()
        baseline = self.sixteen_bit(fetched)
        weights = self._quantize(baseline) if self.plan.stage("quantize") else baseline
        quality = self._evaluate(baseline, weights)
        evaluate.gate(quality, self.plan.recipe.quality)
        return self._package(weights, self._checkpoint(fetched), quality)

    def fetch(self) -> Artifact:
        """The source; before it, since that is soon done, the evaluation text."""
        recipe, source = self.plan.recipe, self.plan.source
        _ = self.evaluation_text
        fetched = self.stage("fetch", lambda f: fetch.run(recipe.source, source, f, self.context))
        checkpoint = self._checkpoint(fetched)
        if checkpoint and source.shape is None:  # what the plan could not know
            check_shape(recipe, shape_in(checkpoint), self.machine)
        return fetched

    def _checkpoint(self, fetched: Artifact) -> Path | None:
        return fetched.root / CHECKPOINT if self.plan.source.format == "checkpoint" else None

    def sixteen_bit(self, fetched: Artifact) -> Artifact:
        """The weights before quantization, in the format the engine loads."""
        if not self.plan.stage("convert"):
            return fetched
        return self._convert("convert", fetched.root / CHECKPOINT)

    def _convert(self, stage: str, checkpoint: Path) -> Artifact:
        settings = self.planned(stage).settings
        kind, name = settings["type"], settings["name"]
        return self.stage(stage, lambda f: convert.run(checkpoint, kind, name, f, self.context))

    def _quantize(self, baseline: Artifact) -> Artifact:
        recipe = self.plan.recipe
        source, text = weights_in(baseline.root), self.evaluation_text
        calibration_set = self.calibration_set
        imatrix = self._imatrix(source, calibration_set)
        chosen = self._mix(baseline, calibration_set, imatrix)

        def run(folder: Path) -> Mapping[str, Any]:
            job = QuantizeJob(
                recipe.quantization,
                source,
                folder / (GGUF if source.is_file() else CHECKPOINT),
                self.plan.device,
                imatrix,
                calibration_set if recipe.quantization.calibrated else None,
            )
            if chosen is None:
                return quantize.run(job, text, self.context)
            made = quantize.run(mixed_job(job, *chosen), text, self.context)
            return {**made, "report": {**made["report"], "mixed": chosen[1].as_json(chosen[0])}}

        return self.stage("quantize", run)

    def _imatrix(self, source: Path, calibration_set: CalibrationSet) -> Path | None:
        if not self.plan.stage("imatrix"):
            return None
        text = self.evaluation_text
        made = self.stage(
            "imatrix",
            lambda f: quantize.make_imatrix(calibration_set, text, source, f, self.context),
        )
        return made.root / quantize.IMATRIX

    def sensitivity(self, baseline: Artifact) -> Artifact:
        """What rounding each part of the 16-bit model costs; see `measure_sensitivity`."""
        calibration_set = self.calibration_set
        imatrix = self._imatrix(weights_in(baseline.root), calibration_set)
        return self._sensitivity(baseline, calibration_set, imatrix)

    def _sensitivity(
        self, baseline: Artifact, calibration_set: CalibrationSet, imatrix: Path | None
    ) -> Artifact:
        disjoint.require_disjoint(calibration_set.path, self.evaluation_text, self.context)
        model = baseline
        if self.plan.stage("gguf"):
            model = self._convert("gguf", baseline.root / CHECKPOINT)
        source, settings = weights_in(model.root), self.planned("sensitivity").settings
        return self.stage(
            "sensitivity",
            lambda f: sensitivity.run(source, calibration_set, imatrix, settings, f, self.context),
        )

    def _mix(
        self, baseline: Artifact, calibration_set: CalibrationSet, imatrix: Path | None
    ) -> tuple[Sensitivity, Mix] | None:
        """The table and the mix chosen from it, where the recipe asks for one."""
        wanted = self.plan.recipe.quantization.mixed
        if wanted is None:
            return None
        measured = self._sensitivity(baseline, calibration_set, imatrix)
        table = Sensitivity.from_report(measured.info)
        mix = choose_mix(table, wanted.budget_bpw, wanted.max_kl_divergence)
        self.context.progress.note(mix.describe(table))
        return table, mix

    @cached_property
    def calibration_set(self) -> CalibrationSet:
        """What quantization is tuned on; fetched first where it lies on a hub."""
        chosen = self.plan.recipe.calibration
        kind: Literal["text", "chats", "rows"] = "chats" if chosen.chats else "text"
        path = calibration_file(self.plan.recipe)
        if self.plan.stage("calibration"):
            pinned = self.pinned("calibration")
            fetched = self.stage(
                "calibration", lambda f: dataset.fetch_calibration(pinned, f, self.context)
            )
            path = fetched.root / fetched.info["name"]
            kind = "text" if path.suffix == ".txt" else "rows"
        return CalibrationSet(path, kind, chosen.samples, chosen.length)

    @cached_property
    def evaluation_text(self) -> Path:
        """What is scored; fetched first where it lies on a hub."""
        if not self.plan.stage("evaluation-text"):
            return evaluation_text(self.plan.recipe)
        pinned = self.pinned("evaluation-text")
        fetched = self.stage(
            "evaluation-text", lambda f: dataset.fetch_evaluation(pinned, f, self.context)
        )
        return fetched.root / str(fetched.info["name"])

    def _corpus(self) -> dict[str, str]:
        """Which text was scored, for the quality record."""
        text = self.evaluation_text
        if not self.plan.stage("evaluation-text"):
            digest = self.planned("evaluate").settings["text"]
            return {"corpus": text.name, "corpus_sha256": digest}
        pinned = self.pinned("evaluation-text")
        return {
            "corpus": f"{pinned['dataset']} {pinned['file']}",
            "corpus_sha256": file_digest(text),
            "corpus_revision": pinned["revision"],
        }

    def pinned(self, stage: str) -> dict[str, str]:
        """The file of a hub's data set that a stage fetches: dataset, revision, file."""
        return {name: str(value) for name, value in self.planned(stage).settings.items()}

    def _evaluate(self, baseline: Artifact, weights: Artifact) -> dict[str, Any]:
        """The quality record; raises StageError where a converted model tokenizes differently."""
        reference = self.score_baseline(baseline) if self.plan.stage("baseline") else None
        scores = self.stage(
            "evaluate",
            lambda f: self.score(
                self.planned("evaluate"), weights_in(weights.root), f, reference,
                "score the finished weights",
            ),
        )  # fmt: skip
        self.scoring_peak = scores.info.get("peak_bytes")
        return self.quality(baseline, scores.info, reference)

    def score_baseline(self, baseline: Artifact) -> Artifact:
        """The scores of the 16-bit model, and its distributions; made once for a checkpoint."""
        planned = self.planned("baseline")
        weights = weights_in(baseline.root)
        return self.stage(
            "baseline", lambda f: self.score(planned, weights, f, None, "score the 16-bit model")
        )

    def score(
        self,
        planned: PlannedStage,
        weights: Path,
        folder: Path,
        reference: Artifact | None,
        title: str,
    ) -> Mapping[str, Any]:
        """Score `weights` as a planned stage says, against the scores of the 16-bit model."""
        recipe = self.plan.recipe
        scoring = engine_named(recipe.target.engine).scoring(self.plan.device)
        settings = {k: v for k, v in planned.settings.items() if k != "text"}
        return evaluate.run(
            weights, scoring, settings, self.evaluation_text, title, self.context, folder,
            reference.root if reference else None,
        )  # fmt: skip

    def quality(
        self, baseline: Artifact, scores: Mapping[str, Any], reference: Artifact | None
    ) -> dict[str, Any]:
        """The quality record of scores; raises StageError where a model tokenizes differently."""
        if self.plan.stage("convert"):
            self.parity = parity.require_equal(baseline.info["parity"], scores["parity"])
        return evaluate.compare(scores, reference.info if reference else None, self._corpus())

    def _package(
        self,
        weights: Artifact,
        checkpoint: Path | None,
        quality: dict[str, Any],
    ) -> Bundle:
        records = provenance.records(self, weights, quality)
        artifact = self.stage(
            "package",
            lambda f: package.run(
                self.plan, weights_in(weights.root), checkpoint, records, self.tools, f,
                self.digests,
            ),
        )  # fmt: skip
        return Bundle.read(artifact.root)

    def planned(self, name: str) -> PlannedStage:
        stage = self.plan.stage(name)
        if stage is None:
            raise AssertionError(f"the plan has no stage {name}")
        return stage

    def stage(self, name: str, run: Callable[[Path], Mapping[str, Any]]) -> Artifact:
        stage = self.planned(name)
        store, folder = self.store, folder_of(stage)
        if name == "package":
            store, folder = self.bundles, self.plan.recipe.name
        started = time.monotonic()
        artifact, cached = store.get_or_build(
            folder, stage.key, lambda f: {**run(f), "tools": self._entered(stage)},
            self.context.progress,
        )  # fmt: skip
        self.tools |= artifact.info["tools"]
        self.outcomes.append(StageOutcome(name, time.monotonic() - started, cached))
        return artifact

    def _entered(self, stage: PlannedStage) -> dict[str, str]:
        """Name and version of every tool in the toolchains of a stage that just ran."""
        entered = (self.context.toolchain(name) for name in stage.toolchains)
        return {tool: version for made in entered for tool, version in made.versions.items()}
