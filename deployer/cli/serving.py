"""`deployer serve`, `status`, `logs` and `stop`: servers from start to end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployer.cli.failures import explain
from deployer.cli.options import json_option, set_option, with_options
from deployer.cli.output import emit, reporter
from deployer.cli.verifying import KEY
from deployer.errors import DeployerError, UsageError
from deployer.home import default_home

if TYPE_CHECKING:
    from deployer.serving import ServerRecord


@click.command()
@click.argument("what", required=False, metavar="[BUNDLE|RECIPE]")
@click.option("--detach", is_flag=True, help="Return once the server is ready; it goes on.")
@click.option("--name", help="Name of the server; default: the bundle's name.")
@with_options(KEY, set_option, json_option)
def serve(
    what: str | None,
    detach: bool,
    name: str | None,
    key: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Serve the newest bundle, or BUNDLE (a folder or a name), or build and serve RECIPE.

    The bundle is verified first. In the foreground the server runs until Ctrl-C, which lets running
    requests finish.
    """
    from deployer.workflow import running

    said = False

    def ready(record: ServerRecord) -> None:
        nonlocal said
        if as_json and not detach:
            said = True
            emit(record.as_json())
            sys.stdout.flush()
        elif not as_json:
            _print_ready(record)

    try:
        record = running.serve(
            what,
            overrides,
            default_home(),
            reporter(),
            name=name,
            detach=detach,
            on_ready=ready,
            key=key,
        )
    except DeployerError as error:
        if not said:
            raise
        sys.exit(explain(error, as_json=False))  # the one document is printed already
    if detach:
        if as_json:
            emit(record.as_json())
        else:
            _print_ready(record)


def _print_ready(record: ServerRecord) -> None:
    after = "" if record.ready_seconds is None else f" after {record.ready_seconds:.1f} s"
    click.echo(f"{record.name} is ready at {record.endpoint}{after} (log: {record.log})")
    click.echo(
        f"Try: curl {record.endpoint}/v1/chat/completions -H 'Content-Type: application/json' "
        f'-d \'{{"model": "{record.model}", "messages": '
        '[{"role": "user", "content": "Hello"}]}\''
    )


@click.command()
@click.argument("name", required=False)
@json_option
def status(name: str | None, as_json: bool) -> None:
    """Show the servers that run, and those that failed."""
    from deployer import serving

    records = serving.status(default_home(), name)
    if as_json:
        emit({"servers": [record.as_json() for record in records]})
        return
    from deployer.console import print_lines, print_table

    if not records:
        print_lines(["No server runs. Start one: deployer serve --detach"])
        return
    columns = ("name", "state", "endpoint", "server", "engine pid", "restarts", "uptime", "memory")
    print_table(columns, [_status_row(record) for record in records])


def _status_row(record: ServerRecord) -> tuple[str, ...]:
    uptime = "" if record.uptime_s is None else f"{record.uptime_s:.0f} s"
    memory = "" if record.peak_rss_bytes is None else f"{record.peak_rss_bytes / 1e6:.0f} MB peak"
    return (
        record.name, record.state, record.endpoint, record.server,
        str(record.engine_pid or ""), str(record.restarts), uptime, memory,
    )  # fmt: skip


@click.command()
@click.argument("name", required=False)
@click.option("-n", "--lines", default=50, show_default=True, type=click.IntRange(0, 1_000_000))
@click.option("-f", "--follow", is_flag=True, help="Go on until the server ends.")
@json_option
def logs(name: str | None, lines: int, follow: bool, as_json: bool) -> None:
    """Print what a server's engine wrote."""
    from deployer import serving
    from deployer.workflow import running

    home = default_home()
    chosen = name or running.only_server(home).name
    written = serving.logs(home, chosen, lines, follow and not as_json)
    if as_json:
        emit({"name": chosen, "lines": list(written)})
        return
    for line in written:
        click.echo(line)


@click.command()
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Stop every server.")
@json_option
def stop(name: str | None, every: bool, as_json: bool) -> None:
    """Let a server finish its running requests, then stop it."""
    from deployer import serving
    from deployer.workflow import running

    home = default_home()
    if every and name:
        raise UsageError("stop takes a name or --all, not both")
    names = [r.name for r in serving.status(home)] if every else [
        name or running.only_server(home).name
    ]  # fmt: skip
    stopped = [serving.stop(home, each, reporter()) for each in names]
    if as_json:
        emit({"servers": [record.as_json() for record in stopped]})
