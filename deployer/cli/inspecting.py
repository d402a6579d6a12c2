"""`deployer inspect`: what a bundle is made of."""

from __future__ import annotations

import click

from deployer.cli.options import json_option, with_options
from deployer.cli.output import emit
from deployer.home import default_home


@click.command()
@click.argument("bundle", required=False)
@with_options(json_option)
def inspect(bundle: str | None, as_json: bool) -> None:
    """Show what a bundle says of itself: origin, licence, quality, tools, files, how to launch it.

    BUNDLE is a folder or a name; default: the newest bundle. Only the manifest and the files' sizes
    are checked; `deployer verify` checks all of it.
    """
    from deployer.workflow.inspecting import inspect as look_at

    found = look_at(bundle, default_home())
    if as_json:
        emit(found.as_json())
        return
    from deployer.console import print_lines

    print_lines(found.describe())
