"""Build: every stage that is not there already, in order."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deployer.artifacts import Artifact, Bundle
from deployer.engines import engine_named
from deployer.errors import PlanError
from deployer.home import Home
from deployer.planning import Machine, Plan, PlannedStage, check_shape, obstacles
from deployer.progress import Progress
from deployer.quantizers import CalibrationSet, QuantizeJob
from deployer.recipe import read_recipe
from deployer.stages import calibration, convert, evaluate, fetch, package, parity, quantize
from deployer.stages.context import StageContext
from deployer.stages.weights import CHECKPOINT, GGUF, shape_in, weights_in
from deployer.store import Store
from deployer.workflow.planned import (
    calibration_file,
    evaluation_text,
    plan_recipe,
    this_machine,
)


@dataclass(frozen=True)
class StageOutcome:
    """How one stage went: `seconds` it took, and whether its output was there already."""

    name: str
    seconds: float
    cached: bool


@dataclass(frozen=True)
class BuildResult:
    """A finished build; `seconds` is all of it, planning too."""

    bundle: Bundle
    stages: tuple[StageOutcome, ...]
    seconds: float

    @property
    def cached(self) -> bool:
        return all(stage.cached for stage in self.stages)

    def describe(self) -> list[str]:
        """The result in words."""
        manifest = self.bundle.manifest
        quality = manifest.quality
        ratio = quality.get("perplexity_ratio", {}).get("value")
        compared = f", {ratio:.3f} x the 16-bit model's" if ratio else ""
        reused = [stage.name for stage in self.stages if stage.cached]
        types = ", ".join(f"{n} {kind}" for kind, n in manifest.quantization["types"].items())
        return [
            f"{manifest.name}: {manifest.size_bytes / 1e6:.1f} MB, "
            f"{manifest.bits_per_weight:.2f} bits a weight ({types})",
            f"Quality: perplexity {quality['perplexity']['value']:.2f}{compared}, over "
            f"{quality['tokens']} tokens of {quality['corpus']}",
            f"It says: {quality['sample'].strip()[:100]!r}",
            f"Built in {self.seconds:.1f} s; reused: {', '.join(reused) or 'nothing'}",
            f"Bundle: {self.bundle.root}",
        ]

    def as_json(self) -> dict[str, Any]:
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.root),
            "name": manifest.name,
            "digest": manifest.digest,
            "cached": self.cached,
            "seconds": round(self.seconds, 3),
            "size_bytes": manifest.size_bytes,
            "bits_per_weight": manifest.bits_per_weight,
            "types": manifest.quantization["types"],
            "substitutions": manifest.quantization["substitutions"],
            "stages": [
                {"name": s.name, "seconds": round(s.seconds, 3), "cached": s.cached}
                for s in self.stages
            ],
            "quality": manifest.quality,
        }


def cached_stages(plan: Plan, home: Home) -> dict[str, bool]:
    """For each stage of a plan, whether its output is there already."""
    store = Store(home.store)
    bundles = Store(home.bundles)
    return {
        stage.name: (
            bundles.find(plan.recipe.name, stage.key)
            if stage.name == "package"
            else store.find(_folder(stage), stage.key)
        )
        is not None
        for stage in plan.stages
    }


def build(
    recipe_path: Path, overrides: Sequence[str], home: Home, progress: Progress
) -> BuildResult:
    """Build a recipe's bundle: every stage that is not there already, in order.

    Raises PlanError, before anything is downloaded, where this machine lacks what it takes, and
    QualityGateError, making no bundle, where the model misses a limit of its recipe.
    """
    started = time.monotonic()
    recipe = read_recipe(recipe_path, overrides)
    machine = this_machine(recipe, home)
    for obstacle in obstacles(recipe, machine):
        raise PlanError(obstacle.message, obstacle.hint)
    planned = plan_recipe(recipe, machine, home)
    logs = home.logs / f"build-{planned.recipe.name}"
    run = _Build(planned, machine, StageContext(home, progress, logs))
    bundle = run.finished_bundle() or run.all_stages()
    return BuildResult(bundle, tuple(run.outcomes), time.monotonic() - started)


class _Build:
    """One build under way; `outcomes` and `tools` (name -> version) grow with every stage.

    `parity` says what was compared of a converted model.
    """

    def __init__(self, plan: Plan, machine: Machine, context: StageContext) -> None:
        self.plan = plan
        self.machine = machine
        self.context = context
        self.store = Store(context.home.store)
        self.bundles = Store(context.home.bundles)
        self.outcomes: list[StageOutcome] = []
        self.tools = {"python": platform.python_version()}
        self.parity: dict[str, Any] = {}

    def finished_bundle(self) -> Bundle | None:
        """The bundle, when this very plan was built before."""
        artifact = self.bundles.find(self.plan.recipe.name, self._planned("package").key)
        if artifact is None:
            return None
        self.outcomes = [StageOutcome(stage.name, 0.0, True) for stage in self.plan.stages]
        self.bundles.touch(artifact)
        return Bundle.read(artifact.root)

    def all_stages(self) -> Bundle:
        plan, context = self.plan, self.context
        recipe, source = plan.recipe, plan.source
        fetched = self._stage("fetch", lambda f: fetch.run(recipe.source, source, f, context))
        checkpoint = fetched.root / CHECKPOINT if source.format == "checkpoint" else None
        if checkpoint and source.shape is None:  # what the plan could not know
            check_shape(recipe, shape_in(checkpoint), self.machine)
        baseline = fetched
        if checkpoint and plan.stage("convert"):
            baseline = self._convert(checkpoint)
        weights = self._quantize(baseline) if plan.stage("quantize") else baseline
        quality = self._evaluate(baseline, weights)
        evaluate.gate(quality, recipe.quality)
        return self._package(weights, checkpoint, quality)

    def _convert(self, checkpoint: Path) -> Artifact:
        settings = self._planned("convert").settings
        kind, name = settings["type"], settings["name"]
        return self._stage(
            "convert", lambda f: convert.run(checkpoint, kind, name, f, self.context)
        )

    def _quantize(self, baseline: Artifact) -> Artifact:
        recipe, context = self.plan.recipe, self.context
        source = weights_in(baseline.root)
        evaluation = evaluation_text(recipe)
        calibration_set = self._calibration_set()
        imatrix: Path | None = None
        if self.plan.stage("imatrix"):
            made = self._stage(
                "imatrix",
                lambda f: quantize.make_imatrix(calibration_set, evaluation, source, f, context),
            )
            imatrix = made.root / quantize.IMATRIX

        def run(folder: Path) -> Mapping[str, Any]:
            job = QuantizeJob(
                recipe.quantization,
                source,
                folder / (GGUF if source.is_file() else CHECKPOINT),
                self.plan.device,
                imatrix,
                calibration_set if recipe.quantization.calibrated else None,
            )
            return quantize.run(job, evaluation, context)

        return self._stage("quantize", run)

    def _calibration_set(self) -> CalibrationSet:
        """What quantization is tuned on; fetched first where it lies on a hub."""
        chosen = self.plan.recipe.calibration
        kind: Literal["text", "chats", "rows"] = "chats" if chosen.chats else "text"
        path = calibration_file(self.plan.recipe)
        if self.plan.stage("calibration"):
            pinned = {k: str(v) for k, v in self._planned("calibration").settings.items()}
            fetched = self._stage("calibration", lambda f: calibration.run(pinned, f, self.context))
            path = fetched.root / fetched.info["name"]
            kind = "text" if path.suffix == ".txt" else "rows"
        return CalibrationSet(path, kind, chosen.samples, chosen.length)

    def _evaluate(self, baseline: Artifact, weights: Artifact) -> dict[str, Any]:
        """The quality record; raises StageError where a converted model tokenizes differently."""
        reference = None
        if self.plan.stage("baseline"):
            reference = self._score("baseline", baseline, "measure the 16-bit model")
            self._require_parity(baseline, reference)
        scores = self._score("evaluate", weights, "measure the finished weights")
        self._require_parity(baseline, scores)
        return evaluate.compare(scores, reference, evaluation_text(self.plan.recipe).name)

    def _require_parity(self, baseline: Artifact, scores: Mapping[str, Any]) -> None:
        if self.plan.stage("convert"):
            self.parity = parity.require_equal(baseline.info["parity"], scores["parity"])

    def _score(self, stage: str, model: Artifact, title: str) -> Mapping[str, Any]:
        recipe, planned = self.plan.recipe, self._planned(stage)
        scoring = engine_named(recipe.target.engine).scoring(self.plan.device)
        settings = {k: v for k, v in planned.settings.items() if k != "text"}
        return self._stage(
            stage,
            lambda f: evaluate.run(
                weights_in(model.root),
                scoring,
                settings,
                evaluation_text(recipe),
                title,
                self.context,
            ),
        ).info

    def _package(
        self,
        weights: Artifact,
        checkpoint: Path | None,
        quality: dict[str, Any],
    ) -> Bundle:
        plan = self.plan
        records = {
            "source": {"kind": plan.source.kind, **plan.source.identity},
            "weights": weights.info["weights"],
            "quantization": {
                "tool_used": weights.info.get("tool"),
                "format": weights.info.get("format"),
                "substitutions": weights.info.get("substitutions", []),
                **weights.info.get("report", {}),
            },
            "quality": quality,
            "parity": self.parity or weights.info.get("parity", {}),
        }
        artifact = self._stage(
            "package",
            lambda f: package.run(
                plan, weights_in(weights.root), checkpoint, records, self.tools, f
            ),
        )
        return Bundle.read(artifact.root)

    def _planned(self, name: str) -> PlannedStage:
        stage = self.plan.stage(name)
        if stage is None:
            raise AssertionError(f"the plan has no stage {name}")
        return stage

    def _stage(self, name: str, run: Callable[[Path], Mapping[str, Any]]) -> Artifact:
        stage = self._planned(name)
        store, folder = self.store, _folder(stage)
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


def _folder(stage: PlannedStage) -> str:
    """The store's folder of a stage: the two scorings share theirs, and so their results."""
    return "evaluate" if stage.name == "baseline" else stage.name
