"""Build: every stage that is not there already, in order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.artifacts import Bundle
from deployer.errors import PlanError
from deployer.home import Home
from deployer.planning import Plan, obstacles
from deployer.progress import Progress
from deployer.quality import in_words
from deployer.recipe import read_recipe
from deployer.store import Store
from deployer.workflow.execution import Execution, StageOutcome, folder_of
from deployer.workflow.planned import plan_recipe, this_machine


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
        reused = [stage.name for stage in self.stages if stage.cached]
        types = ", ".join(f"{n} {kind}" for kind, n in manifest.quantization["types"].items())
        return [
            f"{manifest.name}: {manifest.size_bytes / 1e6:.1f} MB, "
            f"{manifest.bits_per_weight:.2f} bits a weight ({types})",
            *in_words(manifest.quality),
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
            else store.find(folder_of(stage), stage.key)
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
    run = Execution(planned, machine, home, progress)
    bundle = run.finished_bundle() or run.all_stages()
    return BuildResult(bundle, tuple(run.outcomes), time.monotonic() - started)
