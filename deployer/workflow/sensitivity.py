"""Sensitivity: which parts of a recipe's model suffer most from rounding, and the best mixes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.errors import UsageError
from deployer.home import Home
from deployer.planning.mixing import Mix, Sensitivity, choose_mix, curve
from deployer.progress import Progress
from deployer.recipe import Mixed, Quantization, Recipe, read_recipe
from deployer.workflow.execution import Execution
from deployer.workflow.planned import plan_recipe, this_machine

_NO_LIMIT = Mixed(budget_bpw=16.0)
_CURVE_ROWS = 12


@dataclass(frozen=True)
class Measured:
    """The table of a recipe's model; `mix` is what the recipe's own aim chooses, if it has one."""

    recipe: Recipe
    report: dict[str, Any]
    table: Sensitivity
    mix: Mix | None
    cached: bool
    seconds: float

    @property
    def kinds(self) -> list[str]:
        """Every type that was measured, the smallest first."""
        sizes: dict[str, float] = {}
        for part in self.table.parts:
            for choice in part.choices:
                sizes.setdefault(choice.kind, choice.bytes / part.parameters)
        return sorted(sizes, key=lambda kind: sizes[kind])

    def rows(self) -> list[tuple[str, ...]]:
        """Part, its weights, and the divergence with each type; the most sensitive part first.

        That is by divergence a weight, with the smallest type the part can have.
        """
        ranked = sorted(
            self.table.parts,
            key=lambda part: -min(part.choices, key=lambda c: c.bytes).kld / part.parameters,
        )
        rows = []
        for part in ranked:
            costs = {choice.kind: choice.kld for choice in part.choices}
            cells = [f"{costs[kind]:.6f}" if kind in costs else "" for kind in self.kinds]
            rows.append((part.name, f"{part.parameters / 1e6:.2f} M", *cells))
        return rows

    def curve_rows(self) -> list[tuple[str, ...]]:
        """Bits a weight, size, estimated divergence of some of the best mixes, evenly spread."""
        mixes = curve(self.table)
        last = len(mixes) - 1
        picked = sorted({round(step * last / (_CURVE_ROWS - 1)) for step in range(_CURVE_ROWS)})
        return [
            (
                f"{self.table.bits_per_weight(mixes[at].bytes):.3f}",
                f"{mixes[at].bytes / 1e6:.1f} MB",
                f"{mixes[at].kld:.4f}",
            )
            for at in picked
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.recipe.name,
            "groups": self.report["groups"],
            "rest": self.report["rest"],
            "parameters": self.report["parameters"],
            "tokens": self.report["tokens"],
            "ids_sha256": self.report["ids_sha256"],
            "engine": self.report["engine_version"],
            "curve": [mix.as_json(self.table) for mix in curve(self.table)],
            "mix": self.mix.as_json(self.table) if self.mix else None,
            "cached": self.cached,
            "seconds": round(self.seconds, 3),
        }


def measure(
    recipe_path: Path, overrides: Sequence[str], home: Home, progress: Progress
) -> Measured:
    """Fetch, convert and measure a recipe's model; the result is kept in the store.

    Raises UsageError for a method that rounds nothing before it is served.
    """
    started = time.monotonic()
    recipe = read_recipe(recipe_path, overrides)
    aim = recipe.quantization.mixed
    recipe = recipe.model_copy(update={"quantization": _mixable(recipe.quantization)})
    machine = this_machine(recipe, home)
    run = Execution(plan_recipe(recipe, machine, home), machine, home, progress)
    artifact = run.sensitivity(run.sixteen_bit(run.fetch()))
    table = Sensitivity.from_report(artifact.info)
    mix = choose_mix(table, aim.budget_bpw, aim.max_kl_divergence) if aim else None
    cached = next(each.cached for each in run.outcomes if each.name == "sensitivity")
    return Measured(recipe, dict(artifact.info), table, mix, cached, time.monotonic() - started)


def _mixable(wanted: Quantization) -> Quantization:
    """The quantization as one that mixes: what is measured does not depend on its aim."""
    if wanted.method not in ("gguf", "awq", "gptq"):
        raise UsageError(
            f"quantization.method {wanted.method} rounds no weights that could be measured",
            "Use a recipe with gguf, awq or gptq, or --set quantization.method=gguf.",
        )
    if wanted.mixed:
        return wanted
    values = wanted.model_dump()
    if wanted.method == "gguf":
        values |= {"scheme": None}
    return Quantization.model_validate({**values, "tool": "auto", "mixed": _NO_LIMIT})
