"""Plan and build: every stage that is not there already, in order."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deployer.artifacts import Artifact, Bundle, file_digest
from deployer.home import Home
from deployer.memo import DigestMemo
from deployer.planning import Machine, Plan, PlannedStage, Texts, make_plan
from deployer.progress import Progress
from deployer.recipe import Recipe, read_recipe
from deployer.stages import convert, evaluate, fetch, package, quantize
from deployer.stages.context import StageContext
from deployer.store import Store
from deployer.toolchains.host import this_host

DATA = Path(__file__).parent.parent / "data"
EVALUATION_TEXT = DATA / "evaluation-en.txt"
CALIBRATION_TEXT = DATA / "calibration-en.txt"


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


def this_machine() -> Machine:
    """What of this machine decides a plan."""
    return Machine(
        host=this_host(),
        has_gpu=Path("/dev/nvidiactl").exists(),
        memory_bytes=psutil.virtual_memory().total,
    )


def plan(recipe_path: Path, overrides: Sequence[str], home: Home) -> Plan:
    """Read a recipe and plan it; fetches nothing and builds nothing."""
    recipe = read_recipe(recipe_path, overrides)
    memo = DigestMemo.load(home.cache / "digests.json")
    source = fetch.resolve(recipe.source, memo.digest)
    evaluation, calibration = _texts(recipe)
    texts = Texts(file_digest(evaluation), file_digest(calibration))
    return make_plan(recipe, source, this_machine(), texts)


def _texts(recipe: Recipe) -> tuple[Path, Path]:
    """(evaluation text, calibration text) of a recipe: its own, or those that ship."""
    return (
        Path(recipe.quality.text or EVALUATION_TEXT),
        Path(recipe.calibration.text or CALIBRATION_TEXT),
    )


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

    Raises QualityGateError, and makes no bundle, where the model misses a limit of its recipe.
    """
    started = time.monotonic()
    planned = plan(recipe_path, overrides, home)
    logs = home.logs / f"build-{planned.recipe.name}"
    run = _Build(planned, StageContext(home, progress, logs))
    bundle = run.finished_bundle() or run.all_stages()
    return BuildResult(bundle, tuple(run.outcomes), time.monotonic() - started)


class _Build:
    """One build under way; `outcomes` and `tools` (name -> version) grow with every stage."""

    def __init__(self, plan: Plan, context: StageContext) -> None:
        self.plan = plan
        self.context = context
        self.store = Store(context.home.store)
        self.bundles = Store(context.home.bundles)
        self.outcomes: list[StageOutcome] = []
        self.tools = {"python": platform.python_version()}

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
        checkpoint = fetched.root / fetch.CHECKPOINT if source.format == "checkpoint" else None
        baseline = self._convert(checkpoint) if checkpoint else fetched
        weights = self._quantize(baseline) if plan.stage("quantize") else baseline
        quality = self._evaluate(baseline, weights)
        evaluate.gate(quality, recipe.quality)
        return self._package(weights, baseline, checkpoint, quality)

    def _convert(self, checkpoint: Path) -> Artifact:
        settings = self._planned("convert").settings
        kind, name = settings["type"], settings["name"]
        return self._stage(
            "convert", lambda f: convert.run(checkpoint, kind, name, f, self.context)
        )

    def _quantize(self, baseline: Artifact) -> Artifact:
        recipe, context = self.plan.recipe, self.context
        source = baseline.root / convert.GGUF
        imatrix: Path | None = None
        if self.plan.stage("imatrix"):
            evaluation, calibration = _texts(recipe)
            made = self._stage(
                "imatrix",
                lambda f: quantize.make_imatrix(
                    recipe.calibration, calibration, evaluation, source, f, context
                ),
            )
            imatrix = made.root / quantize.IMATRIX
        return self._stage(
            "quantize", lambda f: quantize.run(recipe.quantization, source, imatrix, f, context)
        )

    def _evaluate(self, baseline: Artifact, weights: Artifact) -> dict[str, Any]:
        reference = None
        if self.plan.stage("baseline"):
            reference = self._score("baseline", baseline, "measure the 16-bit model")
        scores = self._score("evaluate", weights, "measure the finished weights")
        text, _ = _texts(self.plan.recipe)
        return evaluate.compare(scores, reference, text.name)

    def _score(self, stage: str, model: Artifact, title: str) -> Mapping[str, Any]:
        text, _ = _texts(self.plan.recipe)
        tokens = self.plan.recipe.quality.tokens
        gguf = model.root / convert.GGUF
        return self._stage(
            stage, lambda f: evaluate.run(gguf, text, tokens, title, f, self.context)
        ).info

    def _package(
        self,
        weights: Artifact,
        baseline: Artifact,
        checkpoint: Path | None,
        quality: dict[str, Any],
    ) -> Bundle:
        plan = self.plan
        records = {
            "source": {"kind": plan.source.kind, **plan.source.identity},
            "gguf": weights.info["gguf"],
            "quantization": {
                "tool_used": weights.info.get("tool"),
                "substitutions": weights.info.get("substitutions", []),
            },
            "quality": quality,
            "parity": baseline.info.get("parity", {}),
        }
        artifact = self._stage(
            "package",
            lambda f: package.run(
                plan, weights.root / convert.GGUF, checkpoint, records, self.tools, f
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
