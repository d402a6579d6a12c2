"""`deployer toolchain list`, `install` and `remove`."""

from __future__ import annotations

import click

from deployer.cli.options import json_option
from deployer.cli.output import emit, reporter
from deployer.home import default_home


@click.group()
def toolchain() -> None:
    """The isolated environments that convert, quantize, measure and serve."""


@toolchain.command("list")
@json_option
def toolchain_list(as_json: bool) -> None:
    """List the toolchains there are, installed or not."""
    from deployer.toolchains.host import this_host
    from deployer.toolchains.installation import installed
    from deployer.toolchains.specs import SPECS

    entries = installed(default_home())
    missing = [name for name in SPECS if not any(e.name == name and e.current for e in entries)]
    if as_json:
        emit({"installed": [entry.as_json() for entry in entries], "not_installed": missing})
        return
    from deployer.console import print_table

    rows = [
        (
            entry.name,
            "installed" if entry.current else "old",
            f"{entry.size_bytes / 1e6:.0f} MB",
            ", ".join(f"{name} {version}" for name, version in entry.versions.items()),
        )
        for entry in entries
    ]
    cuda = this_host().cuda
    rows += [
        (
            name,
            "needs an NVIDIA GPU" if SPECS[name].cuda and not cuda else "made when needed",
            "",
            SPECS[name].purpose,
        )
        for name in missing
    ]
    print_table(("toolchain", "state", "size", "holds"), rows)


@toolchain.command("install")
@click.argument("name")
@json_option
def toolchain_install(name: str, as_json: bool) -> None:
    """Make a toolchain now rather than when it is first needed."""
    from deployer.toolchains.provision import ensure

    made = ensure(name, default_home(), reporter())
    if as_json:
        emit({"name": made.name, "path": str(made.root), "versions": made.versions})
    else:
        click.echo(f"{made.name} is ready in {made.root}")


@toolchain.command("remove")
@click.argument("name")
@json_option
def toolchain_remove(name: str, as_json: bool) -> None:
    """Delete a toolchain; it is made again when it is needed."""
    from deployer.toolchains.installation import remove

    removed = remove(name, default_home())
    if as_json:
        emit({"removed": [str(path) for path in removed]})
    else:
        for path in removed:
            click.echo(f"removed {path}")
