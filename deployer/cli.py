"""argv -> workflow -> exit code. The only printer of errors.

Every command takes `--json`: exactly one JSON document on standard output, all else on standard
error. Heavy modules are imported inside the commands, so that `deployer --help` is quick.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deployer import __version__
from deployer.errors import EXIT_BUG, EXIT_INTERRUPTED, DeployerError, UsageError
from deployer.home import Home, default_home

if TYPE_CHECKING:
    from deployer.planning import Plan
    from deployer.progress import Progress
    from deployer.serving import ServerRecord

_SYSTEM_TROUBLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR,
     errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)  # fmt: skip
Function = TypeVar("Function", bound=Callable[..., Any])
RECIPE = click.argument("recipe", type=click.Path(path_type=Path))
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on standard output."
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Override a field of the recipe, for example --set serve.port=9000. May be repeated.",
)


def with_options(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several options as one decorator, in reading order."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="The usual way: plan, build, serve --detach, loadtest, stop. Exit codes: 0 good, "
    "1 failed or SLO missed, 2 recipe or usage, 3 invalid measurement, 70 a bug, 130 interrupted.",
)
@click.version_option(__version__, prog_name="deployer")
def cli() -> None:
    """Build, measure, serve and load-test large language models from a YAML recipe."""


@cli.command()
@with_options(RECIPE, set_option, json_option)
def plan(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what a build would do, and what of it is there already. Does nothing."""
    from deployer.workflow import building
    from deployer.workflow import planned as planning

    home = default_home()
    planned = planning.plan(recipe, overrides, home)
    cached = building.cached_stages(planned, home)
    if as_json:
        document = planned.as_json()
        for stage in document["stages"]:
            stage["cached"] = cached[stage["name"]]
        emit(document)
        return
    from deployer.console import print_lines, print_table

    rows = [
        (s.name, "there" if cached[s.name] else "to do", s.summary, ", ".join(s.toolchains))
        for s in planned.stages
    ]
    where = f"{planned.recipe.target.engine} on {planned.device}"
    print_table(("stage", "state", "what", "toolchains"), rows, f"{planned.recipe.name}, {where}")
    print_lines([*planned.describe(), *_next_step(planned, recipe, overrides)])


def _next_step(planned: Plan, recipe: Path, overrides: tuple[str, ...]) -> list[str]:
    if not planned.obstacles:
        changes = [word for override in overrides for word in ("--set", override)]
        return [f"Next: {shlex.join(['deployer', 'build', str(recipe), *changes])}"]
    return [f"Not on this machine: {each.message}. {each.hint}" for each in planned.obstacles]


@cli.command()
@with_options(RECIPE, set_option, json_option)
def build(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Fetch, convert, quantize, measure and package a recipe's model."""
    from deployer.workflow import building

    result = building.build(recipe, overrides, default_home(), _reporter())
    if as_json:
        emit(result.as_json())
        return
    from deployer.console import print_lines

    print_lines(result.describe())


@cli.command()
@click.argument("what", required=False, metavar="[BUNDLE|RECIPE]")
@click.option("--detach", is_flag=True, help="Return once the server is ready; it goes on.")
@click.option("--name", help="Name of the server; default: the bundle's name.")
@with_options(set_option, json_option)
def serve(
    what: str | None, detach: bool, name: str | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Serve the newest bundle, or BUNDLE (a folder or a name), or build and serve RECIPE.

    In the foreground the server runs until Ctrl-C, which lets running requests finish.
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
            what, overrides, default_home(), _reporter(), name=name, detach=detach, on_ready=ready
        )
    except DeployerError as error:
        if not said:
            raise
        sys.exit(_explain(error, as_json=False))  # the one document is printed already
    if detach:
        if as_json:
            emit(record.as_json())
        else:
            _print_ready(record)


@cli.command()
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


@cli.command()
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


@cli.command()
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
    stopped = [serving.stop(home, each, _reporter()) for each in names]
    if as_json:
        emit({"servers": [record.as_json() for record in stopped]})


@cli.command()
@click.option("--endpoint", metavar="URL", help="Test this OpenAI-compatible server.")
@click.option("--server", metavar="NAME", help="Test this server of ours; default: the one.")
@click.option("--profile", type=click.Choice(["smoke", "concurrent"]))
@click.option("--users", type=click.IntRange(1, 10_000), help="Concurrent users.")
@click.option("--duration", type=click.IntRange(1, 86_400), help="Measured seconds.")
@click.option(
    "--api-key-file", type=click.Path(path_type=Path), help="File whose first line is the key."
)
@with_options(set_option, json_option)
def loadtest(
    endpoint: str | None,
    server: str | None,
    profile: str | None,
    users: int | None,
    duration: int | None,
    api_key_file: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Load-test a server with Locust: latencies, throughput, errors, SLOs, an HTML report.

    The workload is that of the served bundle's recipe (its loadtest section); options override
    it. Exits 1 when an SLO is missed, 3 when the measurement cannot be trusted.
    """
    from deployer.workflow import running

    options = {"profile": profile, "users": users, "duration": duration}
    chosen = [f"loadtest.{key}={value}" for key, value in options.items() if value is not None]
    outcome = running.loadtest(
        endpoint, server, [*chosen, *overrides], default_home(), _reporter(),
        api_key_file=api_key_file,
    )  # fmt: skip
    if as_json:
        emit(outcome.result.as_json())
    else:
        from deployer.console import print_lines, print_table

        print_table(*outcome.table)
        print_lines(outcome.describe())
    sys.exit(outcome.exit_code)


@cli.command()
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


@cli.group()
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

    made = ensure(name, default_home(), _reporter())
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


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Accepted for uniformity; it is JSON.")
def schema(as_json: bool) -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from deployer.recipe import json_schema

    emit(json_schema())


@cli.command()
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
    script = found(cli, {}, "deployer", "_DEPLOYER_COMPLETE").source()
    if as_json:
        emit({"shell": shell, "script": script})
    else:
        click.echo(script)


def emit(document: Any) -> None:
    """Print one JSON document on standard output; NaN and infinity, which JSON has not, as null."""
    click.echo(json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_ready(record: ServerRecord) -> None:
    after = "" if record.ready_seconds is None else f" after {record.ready_seconds:.1f} s"
    click.echo(f"{record.name} is ready at {record.endpoint}{after} (log: {record.log})")
    click.echo(
        f"Try: curl {record.endpoint}/v1/chat/completions -H 'Content-Type: application/json' "
        f'-d \'{{"model": "{record.model}", "messages": '
        '[{"role": "user", "content": "Hello"}]}\''
    )


def _reporter() -> Progress:
    from deployer.console import reporter

    return reporter()


def main() -> None:
    """The `deployer` command: runs it and ends the process with the documented exit code."""
    as_json = "--json" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names and models may say anything
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(prog_name="deployer", standalone_mode=False)
    except DeployerError as error:
        code = _explain(error, as_json)
    except click.ClickException as error:
        code = _explain_usage(error, as_json)
    except (KeyboardInterrupt, click.Abort):
        code = _explain_interrupt(as_json)
    except OSError as error:
        code = _explain_system(error, as_json)
    except Exception as error:
        code = _report_bug(error, as_json, default_home())
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: DeployerError, as_json: bool) -> int:
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


def _explain_usage(error: click.ClickException, as_json: bool) -> int:
    if as_json:
        emit({"error": {"type": "UsageError", "message": error.format_message(), "hint": ""}})
    else:
        error.show()
    return error.exit_code


def _explain_interrupt(as_json: bool) -> int:
    if as_json:
        emit({"error": {"type": "Interrupted", "message": "interrupted", "hint": ""}})
    else:
        click.echo("Interrupted.", err=True)
    return EXIT_INTERRUPTED


def _explain_system(error: OSError, as_json: bool) -> int:
    """A full disk, a folder that may not be written: the machine's state and no bug of ours."""
    if error.errno not in _SYSTEM_TROUBLE:
        return _report_bug(error, as_json, default_home())
    where = f"{error.filename}: " if error.filename else ""
    return _explain(
        DeployerError(
            f"{where}{error.strerror}",
            "Check free space and permissions, or set DEPLOYER_HOME to another folder.",
        ),
        as_json,
    )


def _report_bug(error: Exception, as_json: bool, home: Home) -> int:
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
