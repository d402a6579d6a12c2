"""`deployer loadtest`: measure a server with Locust."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from deployer.cli.options import json_option, set_option, with_options
from deployer.cli.output import emit, reporter
from deployer.home import default_home

PROFILES = (
    "smoke", "sync", "concurrent", "constant", "poisson", "sweep", "replay", "chat", "prefix",
)  # fmt: skip
"""Those of the recipe, whose module would make `--help` slow."""
key_option = click.option(
    "--api-key-file", type=click.Path(path_type=Path), help="File whose first line is the key."
)


@click.group(invoke_without_command=True, subcommand_metavar="[COMMAND]")
@click.option("--endpoint", metavar="URL", help="Test this OpenAI-compatible server.")
@click.option(
    "--server",
    metavar="NAME",
    help="Test this server or deployment of ours; default: the only one.",
)
@click.option("--profile", type=click.Choice(PROFILES), help="What kind of load.")
@click.option("--users", type=click.IntRange(1, 10_000), help="Concurrent users.")
@click.option(
    "--rate",
    type=click.FloatRange(0, 10_000, min_open=True),
    help="Requests per second of constant and poisson; the first rate of a sweep.",
)
@click.option("--duration", type=click.IntRange(1, 86_400), help="Measured seconds.")
@click.option("--trials", type=click.IntRange(1, 30), help="How often the load is repeated.")
@click.option(
    "--trace",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSONL or CSV file that replay sends.",
)
@click.option(
    "--workers", "--processes", "workers", type=click.IntRange(1, 256), default=1,
    show_default=True, help="Processes that share the load, where one is not fast enough.",
)  # fmt: skip
@click.option(
    "--listen", metavar="HOST:PORT",
    help="Let the workers join here from other machines, by `deployer loadtest join`.",
)  # fmt: skip
@with_options(key_option, set_option, json_option)
@click.pass_context
def loadtest(
    context: click.Context,
    endpoint: str | None,
    server: str | None,
    profile: str | None,
    users: int | None,
    rate: float | None,
    duration: int | None,
    trials: int | None,
    trace: Path | None,
    workers: int,
    listen: str | None,
    api_key_file: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Load-test a server with Locust: latencies, throughput, errors, SLOs, an HTML report.

    The workload is that of the served bundle's recipe (its loadtest section); options override
    it. Exits 1 when an SLO or a gate is missed, 3 when the measurement cannot be trusted.

    \b
    deployer loadtest --profile concurrent --users 16 --duration 60 --trials 3
    deployer loadtest --profile sweep --rate 1 --set loadtest.slo.ttft_p95_ms=500
    deployer loadtest --endpoint http://127.0.0.1:8000 --profile poisson --rate 4
    """
    if context.invoked_subcommand:
        return
    from deployer.workflow import running

    options = {
        "trace": trace, "profile": profile, "users": users, "rate": rate, "duration": duration,
        "trials": trials,
    }  # fmt: skip
    chosen = [f"loadtest.{key}={value}" for key, value in options.items() if value is not None]
    outcome = running.loadtest(
        endpoint, server, [*chosen, *overrides], default_home(), reporter(),
        api_key_file=api_key_file, workers=workers, listen=listen,
    )  # fmt: skip
    if as_json:
        emit(outcome.result.as_json())
    else:
        from deployer.console import print_lines, print_table

        print_table(*outcome.table)
        print_lines(outcome.describe())
    sys.exit(outcome.exit_code)


@loadtest.command("compare")
@click.argument("old")
@click.argument("new")
@click.option("--force", is_flag=True, help="Compare them although the workload differs.")
@with_options(json_option)
def loadtest_compare(old: str, new: str, force: bool, as_json: bool) -> None:
    """Compare two stored load tests: folders, or their names. Nothing is run.

    What changed beyond noise is listed; a regression ends with exit code 4. A regression needs
    --trials 3 or more in both: intervals that do not overlap, and a change of more than 5 % and of
    more than twice the variation.
    """
    from deployer.cli.comparing import compare_stored

    compare_stored((old, new), force, as_json)


@loadtest.command("join")
@click.argument("leader", metavar="LEADER")
@with_options(key_option, json_option)
def loadtest_join(leader: str, api_key_file: Path | None, as_json: bool) -> None:
    """Be one worker of a load test that another machine leads, until it is over.

    LEADER is the address that `deployer loadtest --workers N --listen HOST:PORT` tells there. One
    process uses one core: start it once for each core that is to help. It reaches the leader at
    that port and the next, and the server under test itself.
    """
    from deployer.workflow import running

    loads = running.join(leader, reporter(), api_key_file)
    if as_json:
        emit({"loads": loads})
    else:
        from deployer.console import print_lines

        print_lines([f"The load test is over; this worker took part in {loads} of its loads."])
