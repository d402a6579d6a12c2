"""Does it fit: the server a recipe asks for, and the build that leads to it."""

from __future__ import annotations

from deployer.planning.building_memory import building_hint, building_memory
from deployer.planning.plan import Machine
from deployer.planning.serving_memory import serving_hint, serving_memory
from deployer.planning.shape import ModelShape
from deployer.recipe import Recipe


def check_memory(
    recipe: Recipe,
    shape: ModelShape | None,
    machine: Machine,
    device: str,
    size_bytes: int | None = None,
) -> tuple[str, ...]:
    """The estimates as sentences with their arithmetic.

    Raises PlanError, with what would fit, where something does not fit.
    `size_bytes` is the size of the source's weights; it counts where the shape is not known, and
    for llama.cpp. What is known of neither is not estimated. A place that this machine does not
    have, such as a GPU, is estimated and not compared.
    """
    serving = serving_memory(recipe, shape, machine, device, size_bytes)
    if serving is None:
        return ()
    if not serving.fits:
        serving.require(serving_hint(recipe, shape, machine, device, size_bytes))
    building = building_memory(recipe, shape, machine, device) if shape else ()
    for estimate in building:
        estimate.require(building_hint(recipe, estimate))
    return tuple(str(estimate) for estimate in (serving, *building))
