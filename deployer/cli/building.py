"""`deployer plan` and `deployer build`: from a recipe to a bundle."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployer.cli.options import RECIPE, json_option, set_option, with_options
from deployer.cli.output import emit, reporter
from deployer.home import default_home

if TYPE_CHECKING:
    from deployer.planning import Plan


@click.command()
@with_options(RECIPE, set_option, json_option)
def plan(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what a build would do, and what of it is there already. Does nothing."""
    from deployer.workflow import building
    from deployer.workflow import planned as planning

    home = default_home()
    planned = planning.plan(recipe, overrides, home)
    cached = building.cached_stages(planned, home)
    if as_json:
        document = planned.as_json()
        for stage in document["stages"]:
            stage["cached"] = cached[stage["name"]]
        emit(document)
        return
    from deployer.console import print_lines, print_table

    rows = [
        (s.name, "there" if cached[s.name] else "to do", s.summary, ", ".join(s.toolchains))
        for s in planned.stages
    ]
    where = f"{planned.recipe.target.engine} on {planned.device}"
    print_table(("stage", "state", "what", "toolchains"), rows, f"{planned.recipe.name}, {where}")
    print_lines([*planned.describe(), *_next_step(planned, recipe, overrides)])


def _next_step(planned: Plan, recipe: Path, overrides: tuple[str, ...]) -> list[str]:
    if not planned.obstacles:
        changes = [word for override in overrides for word in ("--set", override)]
        return [f"Next: {shlex.join(['deployer', 'build', str(recipe), *changes])}"]
    return [f"Not on this machine: {each.message}. {each.hint}" for each in planned.obstacles]


@click.command()
@with_options(RECIPE, set_option, json_option)
def build(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Fetch, convert, quantize, measure and package a recipe's model."""
    from deployer.workflow import building

    result = building.build(recipe, overrides, default_home(), reporter())
    if as_json:
        emit(result.as_json())
        return
    from deployer.console import print_lines

    print_lines(result.describe())
