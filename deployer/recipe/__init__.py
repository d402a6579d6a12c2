"""YAML -> frozen `Recipe`: `model` says what a recipe may hold, `reader` reads one."""

from deployer.recipe.loadtest import PROFILES, LoadTest, Slo
from deployer.recipe.model import TEXTS, Recipe, Source, Target, json_schema
from deployer.recipe.quality import PRESETS, Quality
from deployer.recipe.quantization import (
    DEFAULT_MIXED_TYPES,
    GGUF_SCHEMES,
    TOOLS,
    Calibration,
    Mixed,
    Quantization,
)
from deployer.recipe.reader import override_recipe, read_recipe
from deployer.recipe.serve import SERVERS, LoraAdapter, Serve, Transformers, Vllm

__all__ = [
    "DEFAULT_MIXED_TYPES",
    "GGUF_SCHEMES",
    "PRESETS",
    "PROFILES",
    "SERVERS",
    "TEXTS",
    "TOOLS",
    "Calibration",
    "LoadTest",
    "LoraAdapter",
    "Mixed",
    "Quality",
    "Quantization",
    "Recipe",
    "Serve",
    "Slo",
    "Source",
    "Target",
    "Transformers",
    "Vllm",
    "json_schema",
    "override_recipe",
    "read_recipe",
]
