"""`deployer key add`, `list` and `revoke`: who may use a deployment's gateway."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployer.cli.options import json_option, with_options
from deployer.cli.output import emit, reporter

if TYPE_CHECKING:
    from deployer.gateway.keys import StoredKey

FILE = click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    required=True,
    help="The keys file, as gateway.keys names it.",
)
_COUNT = click.IntRange(1, 1_000_000_000)


@click.group()
def key() -> None:
    """API keys of a gateway: made, listed and revoked in a file of digests."""


@key.command("add")
@click.argument("name")
@click.option("--requests-per-minute", type=_COUNT, help="Requests it may begin in a minute.")
@click.option("--tokens-per-minute", type=_COUNT, help="Tokens, in and out, it may use in one.")
@click.option("--concurrent", type=_COUNT, help="Requests it may have at once.")
@click.option(
    "--model", "models", multiple=True, help="Only this model; may be repeated. Default: all."
)
@with_options(FILE, json_option)
def key_add(
    name: str,
    file: Path,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    concurrent: int | None,
    models: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a key called NAME and print it, this once; the file holds only its digest.

    A gateway that uses the file accepts the key from the next request on.
    """
    from deployer.gateway.keys import add_key, new_key

    progress = reporter()
    made = new_key(
        name,
        models=models or None,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent=concurrent,
    )
    secret = add_key(file, made, progress)
    if as_json:
        emit({**made.model_dump(mode="json"), "file": str(file), "secret": secret})
    else:
        click.echo(secret)
        progress.note(f"The key {name} is shown this once; {file} holds only its digest.")


@key.command("list")
@with_options(FILE, json_option)
def key_list(file: Path, as_json: bool) -> None:
    """List the keys of a file with their limits."""
    from deployer.gateway.keys import read_keys, warn_of_others

    keys = read_keys(file).keys
    warn_of_others(file, reporter())
    if as_json:
        documents = [each.model_dump(mode="json", exclude={"sha256"}) for each in keys]
        emit({"file": str(file), "keys": documents})
        return
    from deployer.console import print_lines, print_table

    if not keys:
        print_lines([f"{file} holds no key. Make one: deployer key add NAME --file {file}"])
        return
    columns = ("key", "made", "models", "requests/min", "tokens/min", "at once")
    print_table(columns, [_row(each) for each in keys])


def _row(key: StoredKey) -> tuple[str, ...]:
    limits = (key.requests_per_minute, key.tokens_per_minute, key.concurrent)
    models = "all" if key.models is None else ", ".join(key.models)
    return (key.id, key.created, models, *("" if n is None else str(n) for n in limits))


@key.command("revoke")
@click.argument("name")
@with_options(FILE, json_option)
def key_revoke(name: str, file: Path, as_json: bool) -> None:
    """Take the key NAME out of a file; it opens nothing from the next request on."""
    from deployer.gateway.keys import revoke_key

    revoke_key(file, name, reporter())
    if as_json:
        emit({"file": str(file), "revoked": name})
    else:
        click.echo(f"revoked {name}")
