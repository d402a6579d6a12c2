"""Inference engines: one adapter a module, one table. Third parties add theirs by entry point.

An entry point of the group `deployer.engines` names an object that satisfies `Engine`.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from deployer.engines.launch import (
    Engine,
    Facts,
    Launch,
    Memory,
    ModelToServe,
    Portable,
    Scoring,
)
from deployer.engines.llama_cpp import LlamaCpp
from deployer.engines.transformers import TransformersEngine
from deployer.engines.vllm import VllmEngine
from deployer.errors import PlanError

__all__ = [
    "ENGINES", "Engine", "Facts", "Launch", "Memory", "ModelToServe", "Portable", "Scoring",
    "engine_named",
]  # fmt: skip

ENTRY_POINTS = "deployer.engines"

ENGINES: dict[str, Engine] = {
    "llama.cpp": LlamaCpp(),
    "vllm": VllmEngine(),
    "transformers": TransformersEngine(),
}


def engine_named(name: str) -> Engine:
    """The adapter of that name, ours first; raises PlanError that lists the names there are."""
    if name in ENGINES:
        return ENGINES[name]
    others = entry_points(group=ENTRY_POINTS)
    if name in others.names:
        engine: Engine = others[name].load()
        return engine
    known = ", ".join(sorted({*ENGINES, *others.names}))
    raise PlanError(f"there is no engine {name!r}", f"There are: {known}.")
