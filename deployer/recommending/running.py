"""Whether an environment's device can run a format at all, by the tables a plan is held to."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from deployer.comparison import Row
from deployer.errors import PlanError
from deployer.machine import Gpu
from deployer.planning.loading import check_loading
from deployer.planning.support import check_gpus, check_support
from deployer.quantizers import choose_quantizer
from deployer.recipe import TOOLS, Recipe
from deployer.recipe.environment import Environment, GpuKind
from deployer.recommending.records import GIB


def obstacle(row: Row, environment: Environment) -> str | None:
    """Why the format's engine cannot run it on the environment's device; None where it can.

    A format that no recipe of this deployer describes is not asked about: where it was measured,
    it ran.
    """
    try:
        recipe = _recipe(row, environment.device)
    except ValidationError:
        return None
    try:
        stored_as = _format(recipe, environment.device)
        check_support(recipe, stored_as, environment.device)
        check_loading(recipe, environment.device)
        if environment.gpu:
            check_gpus(recipe, stored_as, _gpus(environment.gpu))
    except PlanError as error:
        return error.message
    return None


def _recipe(row: Row, device: str) -> Recipe:
    """The recipe of a row as far as a row tells it: engine, method, scheme, device."""
    quantization: dict[str, Any] = {"method": row.method}
    scheme = row.scheme.removesuffix("mixed").strip()
    if row.method != "none" and scheme:
        quantization["scheme"] = scheme
    elif row.method == "gguf":  # a mix, of types that llama.cpp has kernels for wherever it runs
        quantization["mixed"] = {"max_kl_divergence": 1.0}
    return Recipe.model_validate(
        {
            "version": 1,
            "name": "asked-about",
            "source": {"path": "."},
            "target": {"engine": row.engine, "device": device},
            "quantization": quantization,
        }
    )


def _format(recipe: Recipe, device: str) -> str:
    """How the weights are stored; methods without a tool quantize while they load."""
    wanted = recipe.quantization
    if not TOOLS.get(wanted.method):
        return wanted.method
    return choose_quantizer(wanted, device).quantizer.format


def _gpus(kind: GpuKind) -> tuple[Gpu, ...]:
    major, _, minor = kind.compute_capability.partition(".")
    gpu = Gpu(kind.name, round(kind.memory_gib * GIB), (int(major), int(minor)))
    return (gpu,) * kind.count
