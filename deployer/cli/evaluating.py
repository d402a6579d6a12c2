"""`deployer evaluate`: measure a bundle's quality."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from deployer.cli.options import json_option, set_option, with_options
from deployer.cli.output import emit, reporter
from deployer.home import default_home


@click.command()
@click.argument("bundle", required=False)
@click.option(
    "--preset",
    type=click.Choice(["quick", "standard", "fixed-4096"]),
    help="Windows to score: quick is 4 of 512 tokens, standard 6 of 2048, fixed-4096 all of 4096.",
)
@click.option(
    "--text", type=click.Path(path_type=Path), help="Text to score: a UTF-8 file, or en or zh."
)
@click.option("--window", type=click.IntRange(64, 131_072), help="Tokens of a window.")
@click.option("--windows", metavar="N", help="How many windows are scored, or all.")
@with_options(set_option, json_option)
def evaluate(
    bundle: str | None,
    preset: str | None,
    text: Path | None,
    window: int | None,
    windows: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure a bundle's quality against its 16-bit model: perplexity, KL divergence, top-1.

    BUNDLE is a folder, a name or a recipe; default: the newest bundle. What is measured is that of
    its recipe (the quality section); options override it. Exits 1 when a limit is missed.
    """
    from deployer.workflow import evaluating

    options = {
        "preset": preset, "text": text, "window": window, "windows": windows,
    }  # fmt: skip
    chosen = [f"quality.{key}={value}" for key, value in options.items() if value is not None]
    done = evaluating.evaluate(bundle, [*chosen, *overrides], default_home(), reporter())
    if as_json:
        emit(done.as_json())
    else:
        from deployer.console import print_lines

        print_lines(done.describe())
    sys.exit(1 if done.missed else 0)
