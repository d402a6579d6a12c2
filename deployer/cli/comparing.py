"""`deployer compare`: formats side by side, or two stored results."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployer.cli.options import json_option, with_options
from deployer.cli.output import emit, reporter
from deployer.errors import EXIT_REGRESSION, UsageError
from deployer.home import default_home

if TYPE_CHECKING:
    from deployer.recipe.matrix import Matrix


@click.command()
@click.argument("what", nargs=-1, metavar="RECIPE... | OLD NEW")
@click.option(
    "--matrix", "matrix_file", type=click.Path(path_type=Path), metavar="FILE",
    help="Compare the formats of this matrix, with its workload.",
)  # fmt: skip
@click.option("--only", metavar="NAME,…", help="Only these formats of the matrix.")
@click.option("--skip", metavar="NAME,…", help="All formats of the matrix but these.")
@click.option("--trials", type=click.IntRange(1, 100), help="Turns of every format.  [default: 3]")
@click.option(
    "--users", type=click.IntRange(2, 10_000), help="Streams of the loaded level.  [default: 8]"
)
@click.option(
    "--duration", type=click.IntRange(1, 86_400), help="Seconds of each level.  [default: 15]"
)
@click.option(
    "--preset", type=click.Choice(["quick", "standard", "fixed-4096"]),
    help="Windows on which quality is scored.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="OLD NEW: compare them although the workload differs.")
@with_options(json_option)
def compare(
    what: tuple[str, ...],
    matrix_file: Path | None,
    only: str | None,
    skip: str | None,
    trials: int | None,
    users: int | None,
    duration: int | None,
    preset: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compare one model in several formats, measured on this machine in one run.

    Each format is built (what was built before is reused), its quality measured, and served in
    turns with the same load. A format that cannot run here is shown with the reason. The result is
    a table, comparison.json, comparison.csv and report.html. Exits 1 when a format failed, or none
    could be measured.

    \b
    deployer compare recipes/smollm2-q4_0.yaml recipes/smollm2-q8_0.yaml
    deployer compare --matrix recipes/matrix/smollm2.yaml --only q4_0,q8_0 --trials 1

    With OLD NEW, two stored results (folders, or their names), nothing is run: what changed beyond
    noise is listed, and a regression ends with exit code 4.
    """
    from deployer.recipe.document import SUFFIXES

    if what and not any(Path(each).suffix in SUFFIXES for each in what):
        compare_stored(what, force, as_json)
        return
    from deployer.workflow import comparing

    given = {"trials": trials, "users": users, "duration": duration, "preset": preset}
    matrix = _matrix(what, matrix_file, given).chosen(_names(only), _names(skip))
    command = shlex.join(["deployer", *sys.argv[1:]])
    outcome = comparing.compare(matrix, default_home(), reporter(), command)
    if as_json:
        emit({**outcome.comparison.as_json(), "folder": str(outcome.folder)})
    else:
        from deployer.console import print_lines, print_table

        print_table(*outcome.table)
        print_lines(outcome.describe())
    sys.exit(outcome.exit_code)


def _names(listed: str | None) -> list[str]:
    return [name.strip() for name in (listed or "").split(",") if name.strip()]


def _matrix(recipes: tuple[str, ...], path: Path | None, given: Mapping[str, object]) -> Matrix:
    """The matrix that is asked for; options go before what it says."""
    from deployer.recipe.matrix import Measure, matrix_of, read_matrix

    if bool(recipes) == bool(path):
        raise UsageError(
            "name recipes, or a matrix",
            "For example: deployer compare --matrix recipes/matrix/smollm2.yaml",
        )
    chosen = {name: value for name, value in given.items() if value is not None}
    if path is None:
        return matrix_of([Path(each) for each in recipes], Measure.model_validate(chosen))
    matrix = read_matrix(path)
    return matrix.model_copy(update={"measure": matrix.measure.model_copy(update=chosen)})


def compare_stored(what: Sequence[str], force: bool, as_json: bool) -> None:
    """Tell what became worse between two stored results, and end with the exit code of that."""
    from deployer.workflow import regressing

    if len(what) != 2:
        raise UsageError(
            f"two stored results are compared, not {len(what)}",
            "Recipes end in .yaml; stored results lie in $DEPLOYER_HOME/comparisons.",
        )
    found = regressing.compare_stored(what[0], what[1], default_home(), force=force)
    if as_json:
        emit(found.as_json())
    else:
        from deployer.console import print_lines, print_table

        print_lines(found.before())
        columns, rows = found.table
        if rows:
            print_table(columns, rows)
        print_lines(found.describe())
    sys.exit(EXIT_REGRESSION if found.regressed else 0)
