"""What people write: recipes and their kin, and --set."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from fuzzing import Target, Wrong
from mutating import json_bytes, mutate_bytes, mutate_text, mutate_tree

from deployer.errors import RecipeError
from deployer.recipe import override_recipe, read_recipe
from deployer.recipe.deployment import read_deployment
from deployer.recipe.environment import find_environment
from deployer.recipe.matrix import read_matrix

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
LEAST_DEPLOYMENT = """\
version: 1
name: chat
gateway: {port: 8000, hosts: [chat.internal], keys: keys.json, max_waiting: 8}
servers:
  q4: {bundle: smollm2-q4_0, serve: {context: 512}}
  f16: {recipe: smollm2-f16.yaml}
routes:
  - model: chat
    to: {q4: 9, f16: 1}
    sticky: session
    shadow: {server: f16, share: 0.1}
    objectives: {ttft_p95_ms: 500, max_error_rate: 0.05}
    quality:
      questions:
        - {ask: "What is the capital of France?", expect: paris}
"""


def _documents(folder: str) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(RECIPES.glob(f"{folder}*.yaml"))]


def _written(kind: str, examples: list[str], read: Callable[[Path], object], what: str) -> Target:
    """A target for a kind of YAML file."""

    def make(rng: random.Random) -> bytes:
        example = rng.choice(examples)
        way = rng.random()
        if way < 0.55:
            return mutate_text(rng, example).encode("utf-8", "surrogatepass")
        if way < 0.85:  # JSON is YAML
            return json_bytes(mutate_tree(rng, yaml.safe_load(example)))
        return mutate_bytes(rng, example.encode(), [each.encode() for each in examples])

    def check(data: bytes, folder: Path) -> bool:
        path = folder / f"{kind}.yaml"
        path.write_bytes(data)
        try:
            read(path)
        except RecipeError as error:
            if not error.problems or not all(problem.message for problem in error.problems):
                raise Wrong("refused without a reason") from error
            raise
        return True

    return Target(kind, what, make, check)


def _override(rng: random.Random) -> bytes:
    field = rng.choice(
        ("serve.port", "serve.threads", "serve.extra_args", "serve.vllm.lora", "serve", "source.x",
         "quality.text", "name", "version", "serve.context.x", "loadtest.users", "..", "=")
    )  # fmt: skip
    return f"{field}={mutate_text(rng, rng.choice(('8080', '[a, b]', 'null')))}".encode(
        "utf-8", "surrogatepass"
    )


def _check_override(data: bytes, folder: Path) -> bool:
    override_recipe(_recipe(), [data.decode("utf-8", "surrogateescape")])
    return True


@cache
def _recipe() -> dict[str, Any]:
    return read_recipe(RECIPES / "smollm2-q4_0.yaml").model_dump(mode="json")


DOCUMENTS = (
    _written("recipe", _documents(""), read_recipe, "recipe.read_recipe"),
    _written("matrix", _documents("matrix/"), read_matrix, "recipe.matrix.read_matrix"),
    _written(
        "environment",
        _documents("environments/"),
        lambda path: find_environment(str(path)),
        "recipe.environment.find_environment",
    ),
    _written(
        "deployment",
        [LEAST_DEPLOYMENT, *_documents("deployments/")],
        read_deployment,
        "recipe.deployment.read_deployment",
    ),
    Target("override", "recipe.override_recipe (--set)", _override, _check_override),
)
