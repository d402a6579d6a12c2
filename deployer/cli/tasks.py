"""`deployer tasks`: what a served model can do."""

from __future__ import annotations

from pathlib import Path

import click

from deployer.cli.options import json_option, with_options
from deployer.cli.output import emit, reporter
from deployer.home import default_home


@click.command()
@click.argument("bundle", required=False)
@click.option(
    "--task", "names", multiple=True, metavar="NAME",
    help="humaneval, instructions, or lm-eval:NAME; may be repeated. Default: the first two.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N items.")
@click.option("--against", metavar="BUNDLE", help="Compare with this bundle: the 16-bit one.")
@click.option("--endpoint", metavar="URL", help="Ask this OpenAI-compatible server instead.")
@click.option(
    "--api-key-file", type=click.Path(path_type=Path),
    help="File whose first line is the key of --endpoint.",
)  # fmt: skip
@with_options(json_option)
def tasks(
    bundle: str | None,
    names: tuple[str, ...],
    limit: int | None,
    against: str | None,
    endpoint: str | None,
    api_key_file: Path | None,
    as_json: bool,
) -> None:
    """Let a bundle write code and follow instructions, through the server that serves it.

    BUNDLE is a folder or a name; default: the newest. It is served on a free port and stopped
    again. Code that the model writes runs confined: no files, no network, no other process.
    """
    from deployer.tasks import DEFAULT
    from deployer.workflow.tasks import run_tasks

    outcome = run_tasks(
        bundle, against, names or DEFAULT, limit, default_home(), reporter(),
        endpoint=endpoint, api_key_file=api_key_file,
    )  # fmt: skip
    if as_json:
        emit(outcome.as_json())
        return
    from deployer.console import print_lines, print_table

    print_table(*outcome.table)
    print_lines(outcome.describe())
