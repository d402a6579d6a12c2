"""`deployer verify` and `deployer sign`: see whether a bundle can be trusted, and vouch for it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from deployer.cli.options import json_option, with_options
from deployer.cli.output import emit, reporter
from deployer.errors import EXIT_FAILED, EXIT_OK
from deployer.home import default_home

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
KEY = click.option(
    "--key",
    type=_FILE,
    metavar="PUBLIC.pem",
    envvar="DEPLOYER_VERIFY_KEY",
    show_envvar=True,
    help="Demand a good signature by this key.",
)


@click.command()
@click.argument("bundle")
@click.option("--full", is_flag=True, help="Hash files again that seem unchanged since last time.")
@with_options(KEY, json_option)
def verify(bundle: str, full: bool, key: Path | None, as_json: bool) -> None:
    """Check BUNDLE, a folder or a name, and list every problem.

    Every file must be what the manifest says, none may be missing or added; weights, tokenizer and
    chat template must be fit to be opened. Exits 1 where there is a problem.
    """
    from deployer.workflow import verifying

    found = verifying.verify(bundle, default_home(), reporter(), key=key, full=full)
    if as_json:
        emit(found.as_json())
    else:
        from deployer.console import print_lines

        print_lines(found.describe())
    sys.exit(EXIT_OK if found.ok else EXIT_FAILED)


@click.command()
@click.argument("bundle")
@click.option(
    "--key", type=_FILE, metavar="PRIVATE.pem", required=True, help="The key to sign with."
)
@click.option("--password-file", type=_FILE, metavar="FILE", help="Its first line opens the key.")
@click.option("--replace", is_flag=True, help="Replace a signature that is there.")
@with_options(json_option)
def sign(bundle: str, key: Path, password_file: Path | None, replace: bool, as_json: bool) -> None:
    """Verify BUNDLE, a folder or a name, and sign all of its files; writes model.sig into it."""
    from deployer.workflow import verifying

    signed = verifying.sign(
        bundle, key, default_home(), reporter(), password_file=password_file, replace=replace
    )
    if as_json:
        emit(signed.as_json())
    else:
        from deployer.console import print_lines

        print_lines(signed.describe())
