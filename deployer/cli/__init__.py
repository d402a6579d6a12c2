"""argv -> workflow -> exit code.

Every command takes `--json`: exactly one JSON document on standard output, all else on standard
error. Heavy modules are imported inside the commands, so that `deployer --help` is quick.
"""

from __future__ import annotations

import io
import sys

import click

from deployer import __version__
from deployer.cli.building import build, plan
from deployer.cli.comparing import compare
from deployer.cli.deployments import reload
from deployer.cli.evaluating import evaluate
from deployer.cli.exporting import export
from deployer.cli.failures import (
    explain,
    explain_interrupt,
    explain_system,
    explain_usage,
    report_bug,
)
from deployer.cli.importing import import_bundle
from deployer.cli.inspecting import inspect
from deployer.cli.keys import key
from deployer.cli.loadtesting import loadtest
from deployer.cli.machine import completion, doctor, schema
from deployer.cli.recommending import recommend
from deployer.cli.sensitivity import sensitivity
from deployer.cli.serving import logs, serve, status, stop
from deployer.cli.tasks import tasks
from deployer.cli.toolchains import toolchain
from deployer.cli.verifying import sign, verify
from deployer.cli.watching import top
from deployer.errors import DeployerError
from deployer.home import default_home

COMMANDS = (
    plan, build, evaluate, sensitivity, serve, status, top, logs, reload, stop, loadtest, tasks,
    compare, recommend, inspect, verify, sign, key, export, import_bundle, doctor, toolchain,
    schema, completion,
)  # fmt: skip


@click.group(
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="The usual way: plan, build, serve --detach, loadtest, stop. Exit codes: 0 good, "
    "1 failed or SLO missed, 2 recipe or usage, 3 invalid measurement, 4 regression, 70 a bug, "
    "130 interrupted.",
)
@click.version_option(__version__, prog_name="deployer")
def cli() -> None:
    """Build, measure, serve and load-test large language models from a YAML recipe."""


def main() -> None:
    """The `deployer` command: runs it and ends the process with the documented exit code."""
    as_json = "--json" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names and models may say anything
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(prog_name="deployer", standalone_mode=False)
    except DeployerError as error:
        code = explain(error, as_json)
    except click.ClickException as error:
        code = explain_usage(error, as_json)
    except (KeyboardInterrupt, click.Abort):
        code = explain_interrupt(as_json)
    except OSError as error:
        code = explain_system(error, as_json)
    except Exception as error:
        code = report_bug(error, as_json, default_home())
    sys.exit(code if isinstance(code, int) else 0)
