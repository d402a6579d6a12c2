"""`deployer reload`, and what `serve` and `status` print of deployments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployer.cli.options import json_option, set_option, with_options
from deployer.cli.output import emit, reporter
from deployer.cli.verifying import KEY
from deployer.home import default_home

if TYPE_CHECKING:
    from deployer.deployments import DeploymentRecord


@click.command()
@click.argument("name")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@with_options(KEY, set_option, json_option)
def reload(
    name: str, file: Path | None, key: Path | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Have the running deployment NAME run what its file says now, or what FILE says.

    No request is lost: new servers start beside the old ones, routes switch once all of them are
    ready, the old ones finish what they have. If a new one fails, nothing changes and the exit code
    is 1. --set and --key replace those the deployment was served with.
    """
    from deployer.workflow import deploying

    record = deploying.reload(name, file, overrides, default_home(), reporter(), key)
    if as_json:
        emit(record.as_json())
    else:
        click.echo(f"{record.name} runs generation {record.generation} at {record.endpoint}")


def print_deployment(record: DeploymentRecord) -> None:
    """That a deployment is ready, and how to ask it."""
    after = "" if record.ready_seconds is None else f" after {record.ready_seconds:.1f} s"
    click.echo(f"{record.name} is {record.state} at {record.endpoint}{after} (log: {record.log})")
    key = ' -H "Authorization: Bearer $KEY"' if record.keys else ""
    click.echo(
        f"Try: curl {record.endpoint}/v1/chat/completions{key} "
        "-H 'Content-Type: application/json' "
        f'-d \'{{"model": "{record.models[0]}", "messages": '
        '[{"role": "user", "content": "Hello"}]}\''
    )


def print_deployments(records: Sequence[DeploymentRecord]) -> None:
    """The table of deployments, a line below it for each that has a fault."""
    from deployer.console import print_lines, print_table

    columns = (
        "deployment",
        "state",
        "endpoint",
        "models",
        "servers",
        "generation",
        "gateway",
        "uptime",
    )
    print_table(columns, [_row(record) for record in records])
    print_lines([f"{record.name}: {line}" for record in records for line in _faults(record)])


def _row(record: DeploymentRecord) -> tuple[str, ...]:
    servers = ", ".join(f"{name} {one.state}" for name, one in record.servers.items())
    restarts = record.gateway_restarts
    gateway = f"pid {record.gateway_pid}" if record.gateway_pid else ""
    gateway += f", {restarts} restarts" if restarts else ""
    uptime = "" if record.uptime_s is None else f"{record.uptime_s:.0f} s"
    return (
        record.name, record.state, record.endpoint, ", ".join(record.models), servers,
        str(record.generation), gateway, uptime,
    )  # fmt: skip


def _faults(record: DeploymentRecord) -> list[str]:
    """What is wrong, or under way."""
    lines = [_first_line(record.error)] if record.error else []
    lines += [
        f"{name} is {one.state}: {_first_line(one.error)}"
        for name, one in record.servers.items()
        if one.error
    ]
    if record.reload and record.reload.state == "under way":
        starting = ", ".join(f"{n} {one.state}" for n, one in record.reload.starting.items())
        lines.append(f"a reload is under way: {starting or 'about to start'}")
    if record.reload and record.reload.state == "failed":
        lines.append(f"the last reload was given up: {_first_line(record.reload.error or {})}")
    lines += [f"{instance} retires" for instance in record.retiring]
    return lines


def _first_line(error: dict[str, object]) -> str:
    return str(error.get("message", "")).partition("\n")[0]
