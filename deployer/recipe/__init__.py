"""YAML -> frozen `Recipe`: `model` says what a recipe may hold, `reader` reads one."""

from deployer.recipe.model import LoadTest, Quality, Recipe, Slo, Source, Target, json_schema
from deployer.recipe.quantization import GGUF_SCHEMES, TOOLS, Calibration, Quantization
from deployer.recipe.reader import override_recipe, read_recipe
from deployer.recipe.serve import SERVERS, LoraAdapter, Serve, Vllm

__all__ = [
    "GGUF_SCHEMES",
    "SERVERS",
    "TOOLS",
    "Calibration",
    "LoadTest",
    "LoraAdapter",
    "Quality",
    "Quantization",
    "Recipe",
    "Serve",
    "Slo",
    "Source",
    "Target",
    "Vllm",
    "json_schema",
    "override_recipe",
    "read_recipe",
]
