"""`deployer doctor`, `schema` and `completion`: this machine, its editor, its shell."""

from __future__ import annotations

import sys

import click

from deployer.cli.options import json_option
from deployer.cli.output import emit
from deployer.errors import UsageError
from deployer.home import default_home


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Look at this machine: what it has, what it lacks, what to do about it."""
    from deployer.doctor import examine

    findings = examine(default_home())
    good = all(finding.verdict != "bad" for finding in findings)
    if as_json:
        emit({"ok": good, "findings": [vars(finding) for finding in findings]})
    else:
        from deployer.console import print_lines

        marks = {"good": "✓", "note": "·", "bad": "✗"}
        for finding in findings:
            print_lines([f"{marks[finding.verdict]} {finding.name}: {finding.detail}"])
            if finding.hint:
                print_lines([f"    {finding.hint}"])
    sys.exit(0 if good else 1)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Accepted for uniformity; it is JSON.")
def schema(as_json: bool) -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from deployer.recipe import json_schema

    emit(json_schema())


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print the script that gives a shell tab completion.

    For bash: deployer completion bash > ~/.local/share/bash-completion/completions/deployer
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"there is no completion for {shell}")
    program = click.get_current_context().find_root().command
    script = found(program, {}, "deployer", "_DEPLOYER_COMPLETE").source()
    if as_json:
        emit({"shell": shell, "script": script})
    else:
        click.echo(script)
