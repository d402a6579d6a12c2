"""The command line a plan shows: what `deployer serve` will start for the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deployer.engines import Facts, ModelToServe, engine_named
from deployer.planning.shape import ModelShape
from deployer.recipe import Recipe

BUNDLE = Path("BUNDLE")


def planned_model(
    recipe: Recipe, shape: ModelShape | None, device: str, weights_bytes: int = 0
) -> ModelToServe:
    """The model as an engine's adapter is told of it before there is a bundle."""
    return ModelToServe(
        BUNDLE / "model.gguf" if engine_named(recipe.target.engine).format == "gguf" else BUNDLE,
        recipe.name,
        device,
        recipe.quantization.method,
        recipe.quantization.scheme,
        shape.kv_bytes_per_token if shape else 0,
        weights_bytes,
        recipe.quantization.load,
    )


def server_command(
    recipe: Recipe, shape: ModelShape | None, device: str, facts: Facts
) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """(argv, environment) of the server; raises PlanError for settings that cannot be.

    A server that the recipe names need not be installed: a build does not use it.
    """
    engine = engine_named(recipe.target.engine)
    facts = replace(facts, programs=facts.programs | {recipe.serve.server})
    model = planned_model(recipe, shape, device)
    launch = engine.launch(engine.choose(recipe.serve.server, facts), model, recipe.serve, facts)
    command = launch.command
    program = command.worker or command.program
    return (program, *command.arguments), command.env
