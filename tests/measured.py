"""Figures that tests measured, kept in one JSON document for docs/reliability.md.

DEPLOYER_MEASURED names the document; without it nothing is written, so that a test run changes no
tracked file by itself. With DEPLOYER_MEASURED_ADD set, a run's figures are put beside those of the
runs before, where a section holds runs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "DEPLOYER_MEASURED"
ADD = "DEPLOYER_MEASURED_ADD"


def record(section: str, figures: dict[str, Any]) -> None:
    """Put a section into the document, in place of an older one."""
    named = os.environ.get(VARIABLE)
    if named:
        write(Path(named), section, figures)


def record_run(section: str, figures: dict[str, Any]) -> None:
    """Put one run into a section that holds a list of them."""
    named = os.environ.get(VARIABLE)
    if not named:
        return
    before = read(Path(named)).get(section, {}).get("runs", []) if os.environ.get(ADD) else []
    write(Path(named), section, {"runs": [*before, figures]})


def record_parts(section: str, parts: dict[str, Any]) -> None:
    """Put parts into a section by their names, beside others that are there."""
    named = os.environ.get(VARIABLE)
    if named:
        write(Path(named), section, {**read(Path(named)).get(section, {}), **parts})


def read(path: Path) -> dict[str, Any]:
    """The document, {} where there is none yet."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write(path: Path, section: str, figures: dict[str, Any]) -> None:
    document = {**read(path), section: figures}
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
