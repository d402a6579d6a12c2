"""`deployer import`: a bundle from another machine."""

from __future__ import annotations

from pathlib import Path

import click

from deployer.cli.options import json_option, with_options
from deployer.cli.output import emit, reporter
from deployer.home import default_home


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path, exists=True), metavar="FILE.tar|FOLDER")
@click.option(
    "--key", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="PUBLIC.pem",
    envvar="DEPLOYER_VERIFY_KEY", help="Demand a good signature of the bundle by this key.",
)  # fmt: skip
@click.option("--name", help="Name of the bundle here; default: the one it was built with.")
@with_options(json_option)
def import_bundle(source: Path, key: Path | None, name: str | None, as_json: bool) -> None:
    """Verify a bundle that `export --to tar` wrote, and keep a copy of it.

    What `export --offline` carried along serves it then, without a network.
    """
    from deployer.workflow import importing

    imported = importing.import_bundle(source, default_home(), reporter(), key=key, name=name)
    if as_json:
        emit(imported.as_json())
        return
    from deployer.console import print_lines

    print_lines(imported.describe())
