"""`deployer sensitivity`: which parts of a model suffer most from rounding."""

from __future__ import annotations

from pathlib import Path

import click

from deployer.cli.options import RECIPE, json_option, set_option, with_options
from deployer.cli.output import emit, reporter
from deployer.home import default_home


@click.command()
@with_options(RECIPE, set_option, json_option)
def sensitivity(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Measure, part by part, what quantizing a recipe's model costs, and what mixes could be.

    Each block's attention and feed-forward part, the embedding and the output layer are rounded
    alone, and the model is compared with the 16-bit one on the calibration text.
    """
    from deployer.workflow import sensitivity as measuring

    done = measuring.measure(recipe, overrides, default_home(), reporter())
    if as_json:
        emit(done.as_json())
        return
    from deployer.console import print_lines, print_table

    columns = ("part", "weights", *done.kinds)
    print_table(columns, done.rows(), "KL divergence when this part alone is rounded, nats a token")
    sizes = ("bits a weight", "tensors", "KL divergence, estimated")
    print_table(sizes, done.curve_rows(), "The best mixes, from the smallest up")
    if done.mix:
        print_lines([f"The recipe's own: {done.mix.describe(done.table)}"])
