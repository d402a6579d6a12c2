"""Plan a recipe on this machine: pin its source and texts, look at what is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from deployer.artifacts import file_digest, json_digest
from deployer.engines import engine_named
from deployer.facts import find_facts
from deployer.gpus import gpus
from deployer.home import Home
from deployer.memo import DigestMemo
from deployer.planning import (
    Machine,
    ModelShape,
    Plan,
    ResolvedSource,
    Texts,
    fetch_key,
    make_plan,
)
from deployer.recipe import TEXTS, Recipe, read_recipe
from deployer.stages import dataset, fetch
from deployer.stages.weights import CHECKPOINT, shape_in
from deployer.store import Store
from deployer.toolchains.host import this_host

DATA = Path(__file__).parent.parent / "data"
EVALUATION_TEXT = DATA / "evaluation-en.txt"
CALIBRATION_TEXT = DATA / "calibration-en.txt"


def this_machine(recipe: Recipe, home: Home) -> Machine:
    """What of this machine decides a plan of the recipe, and which server the plan shows."""
    found = gpus()
    facts = find_facts(engine_named(recipe.target.engine), home, bool(found))
    return Machine(this_host(), psutil.virtual_memory().total, found, facts)


def plan(recipe_path: Path, overrides: Sequence[str], home: Home) -> Plan:
    """Read a recipe and plan it; fetches no weights and builds nothing."""
    recipe = read_recipe(recipe_path, overrides)
    return plan_recipe(recipe, this_machine(recipe, home), home)


def plan_recipe(recipe: Recipe, machine: Machine, home: Home) -> Plan:
    """Pin what the recipe names, and plan it for `machine`; raises SourceError and PlanError."""
    memo = DigestMemo.load(home.cache / "digests.json")
    source = fetch.resolve(recipe.source, memo.digest)
    if source.shape is None:
        source = replace(source, shape=_known_shape(recipe, source, machine, home))
    return make_plan(recipe, source, machine, _digests(recipe))


def _known_shape(
    recipe: Recipe, source: ResolvedSource, machine: Machine, home: Home
) -> ModelShape | None:
    """The shape of a source that was fetched before."""
    found = Store(home.store).find("fetch", fetch_key(recipe, source, machine.host))
    checkpoint = found.root / CHECKPOINT if found else None
    return shape_in(checkpoint) if checkpoint and checkpoint.is_dir() else None


def _digests(recipe: Recipe) -> Texts:
    """The digests of the texts a build reads; those it does not read are not asked for."""
    scored = dataset.resolve(recipe.quality)
    wanted = recipe.quantization
    tuned_on = dataset.resolve(recipe.calibration) if wanted.reads_calibration else None
    return Texts(
        json_digest(scored) if scored else file_digest(evaluation_text(recipe)),
        json_digest(tuned_on) if tuned_on else file_digest(calibration_file(recipe)),
        tuned_on,
        scored,
    )


def evaluation_text(recipe: Recipe) -> Path:
    """The text that quality is measured on, where it is no data set of a hub."""
    return _text("evaluation", recipe.quality.text)


def calibration_file(recipe: Recipe) -> Path:
    """The calibration set's file, where it is no data set of a hub."""
    chosen = recipe.calibration
    return Path(chosen.chats) if chosen.chats else _text("calibration", chosen.text)


def _text(purpose: str, chosen: str | None) -> Path:
    """A recipe's text: the file it names, or the one that ships in a language (English)."""
    if chosen is None or chosen in TEXTS:
        return DATA / f"{purpose}-{chosen or 'en'}.txt"
    return Path(chosen)
