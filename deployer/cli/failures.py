"""The only printer of errors: each function tells of one kind and returns the exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback

import click

from deployer import __version__
from deployer.cli.output import emit
from deployer.errors import EXIT_BUG, EXIT_INTERRUPTED, DeployerError
from deployer.home import Home, default_home

_SYSTEM_TROUBLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR,
     errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)  # fmt: skip


def explain(error: DeployerError, as_json: bool) -> int:
    """An error of ours: its sentence, the end of a program's log, its hint."""
    if as_json:
        emit({"error": error.as_json()})
        return error.exit_code
    click.echo(click.style("error: ", fg="red", bold=True) + error.message, err=True)
    tail = getattr(error, "tail", "")
    if tail:
        click.echo("\n".join(f"  | {line}" for line in tail.splitlines()[-8:]), err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
    return error.exit_code


def explain_usage(error: click.ClickException, as_json: bool) -> int:
    """What click could not make sense of in the command line."""
    if as_json:
        emit({"error": {"type": "UsageError", "message": error.format_message(), "hint": ""}})
    else:
        error.show()
    return error.exit_code


def explain_interrupt(as_json: bool) -> int:
    """Ctrl-C, or a prompt that was left."""
    if as_json:
        emit({"error": {"type": "Interrupted", "message": "interrupted", "hint": ""}})
    else:
        click.echo("Interrupted.", err=True)
    return EXIT_INTERRUPTED


def explain_system(error: OSError, as_json: bool) -> int:
    """A full disk, a folder that may not be written: the machine's state and no bug of ours."""
    if error.errno not in _SYSTEM_TROUBLE:
        return report_bug(error, as_json, default_home())
    where = f"{error.filename}: " if error.filename else ""
    return explain(
        DeployerError(
            f"{where}{error.strerror}",
            "Check free space and permissions, or set DEPLOYER_HOME to another folder.",
        ),
        as_json,
    )


def report_bug(error: Exception, as_json: bool, home: Home) -> int:
    """A bug: say so, and write a log that can be pasted into a report."""
    log = home.logs / f"bug-{os.getpid()}.log"
    text = f"deployer {__version__}, Python {sys.version}\nargv: {sys.argv}\n\n"
    text += "".join(traceback.format_exception(error))
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text, encoding="utf-8")
    except OSError:
        click.echo(text, err=True)
    message = f"a bug in deployer: {type(error).__name__}: {error}"
    hint = f"Please report it with the log {log}"
    if as_json:
        emit({"error": {"type": "Bug", "message": message, "hint": hint}})
    else:
        click.echo(f"error: {message}\nhint: {hint}", err=True)
    return EXIT_BUG
