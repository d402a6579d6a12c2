"""What commands print: the one JSON document, or progress and tables for a person."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from deployer.progress import Progress


def emit(document: Any) -> None:
    """Print one JSON document on standard output; NaN and infinity, which JSON has not, as null."""
    click.echo(json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def reporter() -> Progress:
    """The progress display for this run, on standard error."""
    from deployer import console

    return console.reporter()
