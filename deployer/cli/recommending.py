"""`deployer recommend`: which format for which environment."""

from __future__ import annotations

import sys

import click
from click.shell_completion import CompletionItem

from deployer.cli.options import json_option, with_options
from deployer.cli.output import emit
from deployer.errors import EXIT_FAILED
from deployer.home import default_home


class EnvironmentName(click.ParamType[str]):
    """An environment: a file, or the name of one in recipes/environments."""

    name = "environment"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from deployer.recipe.environment import environment_names

        names = [name for name in environment_names() if name.startswith(incomplete)]
        return [*map(CompletionItem, names), CompletionItem(incomplete, type="file")]


@click.command()
@click.option(
    "--environment", required=True, type=EnvironmentName(), metavar="FILE|NAME",
    help="A YAML file, or its name in recipes/environments, for example cloud-cpu.",
)  # fmt: skip
@click.option(
    "--comparison", metavar="ID|FOLDER|FILE",
    help="What `deployer compare` measured. Default: the newest.",
)  # fmt: skip
@with_options(json_option)
def recommend(environment: str, comparison: str | None, as_json: bool) -> None:
    """Choose a format for an environment from what a comparison measured.

    For example: deployer recommend --environment cloud-cpu

    Says the format, the runner-up, what ruled the others out, what is left free, the cost per
    million output tokens, and how sure that is. What was not measured is labelled ESTIMATE, with
    its formula. Exits 1 when no format keeps every limit.
    """
    from deployer.workflow import recommending

    found = recommending.recommend(environment, comparison, default_home())
    if as_json:
        emit(found.as_json())
    else:
        from deployer.console import print_lines, print_table
        from deployer.recommending import basis_lines, describe, ruled_out_rows

        print_lines(describe(found))
        if found.ruled_out:
            print_table(("format", "ruled out by", "reason"), ruled_out_rows(found))
        print_lines(["How the figures were got:", *(f"  {line}" for line in basis_lines(found))])
    sys.exit(EXIT_FAILED if found.chosen is None else 0)
