"""`deployer serve`, `status`, `logs`, `stop`: servers and deployments from start to end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from deployer.cli.deployments import print_deployment, print_deployments
from deployer.cli.failures import explain
from deployer.cli.options import json_option, set_option, with_options
from deployer.cli.output import emit, reporter
from deployer.cli.verifying import KEY
from deployer.errors import DeployerError, UsageError
from deployer.home import default_home

if TYPE_CHECKING:
    from deployer.deployments import DeploymentRecord
    from deployer.serving import ServerRecord


class _HasJson(Protocol):
    def as_json(self) -> dict[str, Any]: ...


Served = TypeVar("Served", bound=_HasJson)


@click.command()
@click.argument("what", required=False, metavar="[BUNDLE|RECIPE|DEPLOYMENT]")
@click.option("--detach", is_flag=True, help="Return once the server is ready; it goes on.")
@click.option("--name", help="Name of the server or deployment; default: the bundle's or file's.")
@click.option("--gateway", is_flag=True, help="Put a gateway in front of the server.")
@with_options(KEY, set_option, json_option)
def serve(
    what: str | None,
    detach: bool,
    name: str | None,
    gateway: bool,
    key: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Serve the newest bundle, or BUNDLE (a folder or a name), or build and serve RECIPE.

    A YAML file with servers is a DEPLOYMENT: several bundles behind one gateway. Every bundle is
    verified first. In the foreground all runs until Ctrl-C, which lets running requests finish.
    """
    from deployer.workflow import deploying, running

    home, progress = default_home(), reporter()
    if gateway or deploying.is_deployment_file(what):

        def deploy(on_ready: Callable[[DeploymentRecord], None]) -> DeploymentRecord:
            return deploying.serve(
                what, overrides, home, progress, name=name, detach=detach, on_ready=on_ready,
                key=key,
            )  # fmt: skip

        _until_it_ends(deploy, print_deployment, detach, as_json)
        return

    def start(on_ready: Callable[[ServerRecord], None]) -> ServerRecord:
        return running.serve(
            what, overrides, home, progress, name=name, detach=detach, on_ready=on_ready, key=key
        )

    _until_it_ends(start, _print_ready, detach, as_json)


def _until_it_ends(
    start: Callable[[Callable[[Served], None]], Served],
    show: Callable[[Served], None],
    detach: bool,
    as_json: bool,
) -> None:
    """Start something and print its record once it is ready; in the foreground, wait for its end.

    An error after the one JSON document was printed is told in plain words.
    """
    said = False

    def ready(record: Served) -> None:
        nonlocal said
        if as_json and not detach:
            said = True
            emit(record.as_json())
            sys.stdout.flush()
        elif not as_json:
            show(record)

    try:
        record = start(ready)
    except DeployerError as error:
        if not said:
            raise
        sys.exit(explain(error, as_json=False))
    if detach:
        if as_json:
            emit(record.as_json())
        else:
            show(record)


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
    """Show the servers and deployments that run, and those that failed."""
    from deployer.workflow import lookup

    found = lookup.status(default_home(), name)
    records = found.servers
    if as_json:
        emit(found.as_json())
        return
    from deployer.console import print_lines, print_table

    if not records and not found.deployments:
        print_lines(["No server runs. Start one: deployer serve --detach"])
        return
    columns = (
        "name", "state", "endpoint", "server", "restarts", "uptime", "requests", "output tok/s",
        "memory",
    )  # fmt: skip
    if records:
        print_table(columns, [_status_row(record) for record in records])
    if found.deployments:
        print_deployments(found.deployments)


def _status_row(record: ServerRecord) -> tuple[str, ...]:
    """A row of the table; what was not measured is left blank."""
    restarts = f"{record.restarts}, last: {record.last_cause}" if record.last_cause else "0"
    uptime = "" if record.uptime_s is None else _span(record.uptime_s)
    requests = "" if record.running is None else f"{record.running:.0f} run"
    requests += f", {record.waiting:.0f} wait" if record.waiting else ""
    rate = "" if record.output_tokens_per_s is None else f"{record.output_tokens_per_s:.1f}"
    memory = "" if record.peak_rss_bytes is None else f"{record.peak_rss_bytes / 1e6:.0f} MB peak"
    return (
        record.name, record.state, record.endpoint, record.server, restarts, uptime, requests,
        rate, memory,
    )  # fmt: skip


def _span(seconds: float) -> str:
    """A time in its two largest units, for example 2 d 3 h."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days:.0f} d {hours % 24:.0f} h"
    if hours:
        return f"{hours:.0f} h {minutes % 60:.0f} min"
    return f"{minutes:.0f} min {seconds % 60:.0f} s" if minutes else f"{seconds:.0f} s"


@click.command()
@click.argument("name", required=False)
@click.option("-n", "--lines", default=50, show_default=True, type=click.IntRange(0, 1_000_000))
@click.option("-f", "--follow", is_flag=True, help="Go on until the server ends.")
@json_option
def logs(name: str | None, lines: int, follow: bool, as_json: bool) -> None:
    """Print what a server's engine wrote, or a deployment's gateway."""
    from deployer.workflow import lookup

    home = default_home()
    chosen = name or lookup.only_running(home)
    written = lookup.logs(chosen, home, lines, follow and not as_json)
    if as_json:
        emit({"name": chosen, "lines": list(written)})
        return
    for line in written:
        click.echo(line)


@click.command()
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Stop every deployment and server.")
@json_option
def stop(name: str | None, every: bool, as_json: bool) -> None:
    """Let a server, or all of a deployment, finish its running requests, then stop it."""
    from deployer.workflow import lookup

    home = default_home()
    if every and name:
        raise UsageError("stop takes a name or --all, not both")
    if every:
        stopped = lookup.stop_all(home, reporter())
    else:
        stopped = lookup.stop(name or lookup.only_running(home), home, reporter())
    if as_json:
        emit(stopped.as_json())
