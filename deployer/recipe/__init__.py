"""YAML -> frozen `Recipe`: `model` says what a recipe may hold, `reader` reads one."""

from deployer.recipe.model import (
    GGUF_SCHEMES,
    Calibration,
    LoadTest,
    Quality,
    Quantization,
    Recipe,
    Serve,
    Slo,
    Source,
    Target,
    json_schema,
)
from deployer.recipe.reader import override_recipe, read_recipe

__all__ = [
    "GGUF_SCHEMES",
    "Calibration",
    "LoadTest",
    "Quality",
    "Quantization",
    "Recipe",
    "Serve",
    "Slo",
    "Source",
    "Target",
    "json_schema",
    "override_recipe",
    "read_recipe",
]
