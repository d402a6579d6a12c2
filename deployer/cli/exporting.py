"""`deployer export`: a bundle, or what runs it, for another place."""

from __future__ import annotations

from pathlib import Path

import click

from deployer.cli.options import json_option, with_options
from deployer.cli.output import emit, reporter
from deployer.home import default_home

TARGETS = (
    "tar", "oci-layout", "systemd", "docker", "compose", "kubernetes", "production-stack",
    "kserve", "vllm-router", "monitoring",
)  # fmt: skip


@click.command()
@click.argument("what", required=False, metavar="[BUNDLE]")
@click.option(
    "--to", "target", required=True, type=click.Choice(TARGETS),
    help="What to make.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="PATH",
    help="File or folder to write.  [default: NAME-DIGEST12 here]",
)  # fmt: skip
@click.option("--offline", is_flag=True, help="tar: carry deployer and the server's packages too.")
@click.option("--image", help="Container image that has the engine.")
@click.option("--release", metavar="VERSION", help="The engine's version in that image.")
@click.option(
    "--model", metavar="REFERENCE",
    help="Where the target finds the bundle: a folder, oci://REGISTRY/NAME:TAG, pvc://CLAIM/PATH.",
)  # fmt: skip
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(1, 1000))
@click.option("--namespace", help="kubernetes, kserve: the namespace.")
@click.option("--key-secret", metavar="NAME", help="The target's secret that holds API keys.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--estimate", is_flag=True,
    help="Do not start the server to measure it; figures are labelled as estimates.",
)  # fmt: skip
@click.option(
    "--key", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="PUBLIC.pem",
    envvar="DEPLOYER_VERIFY_KEY", help="Demand a good signature of the bundle by this key.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace what is there.")
@with_options(json_option)
def export(
    what: str | None,
    target: str,
    output: Path | None,
    offline: bool,
    image: str | None,
    release: str | None,
    model: str | None,
    replicas: int,
    namespace: str | None,
    key_secret: str | None,
    host: str,
    port: int,
    estimate: bool,
    key: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write BUNDLE (a folder, a name, or the newest) for another place.

    tar and oci-layout carry the bundle itself. monitoring is for Prometheus and Grafana, which
    watch the gateway in front of it. The others are files that run it: their memory limits, probes
    and grace periods come from a footprint, which is measured by starting the server here once,
    unless it was measured before.

    \b
    deployer export smollm2-q4_0 --to tar --offline
    deployer export smollm2-q4_0 --to kubernetes --model oci://registry.example/smollm2:q4_0
    """
    from deployer.exporting import Options
    from deployer.workflow import exporting

    options = Options(image, release, model, replicas, namespace, key_secret, host, port)
    made = exporting.export(
        what, target, options, default_home(), reporter(), output=output, offline=offline,
        estimate=estimate, force=force, key=key,
    )  # fmt: skip
    if as_json:
        emit(made.as_json())
    else:
        from deployer.console import print_lines

        print_lines(made.describe())
