"""Thousands of broken inputs for every parser, and for the gateway over real sockets.

DEPLOYER_FUZZ_COUNT sets how many for each; DEPLOYER_MEASURED names a document for the figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")
SOCKETS = Path(__file__).with_name("sockets.py")
COUNT = os.environ.get("DEPLOYER_FUZZ_COUNT", "10000")
NAMES = (
    "recipe", "matrix", "environment", "deployment", "override", "gguf", "checkpoint", "bundle",
    "signature", "tar", "folder", "template", "records", "metrics", "keys", "table", "request",
    "stream", "figures", "errors",
)  # fmt: skip
pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


def ran(script: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """(exit status, the JSON it printed, what it said)."""
    out = os.environ.get("DEPLOYER_MEASURED")
    more = ("--out", str(Path(out).absolute())) if out else ()
    done = subprocess.run(
        [sys.executable, str(script), *arguments, *more],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_parser(name: str, tmp_path: Path) -> None:
    code, found, said = ran(FUZZ, name, "--count", COUNT, "--folder", str(tmp_path))
    assert code == 0, said[-4000:]
    figures = found[name]
    assert figures["taken"] + figures["refused"] == int(COUNT)
    assert figures["taken"] > 0, "no input was good: they are too broken to reach far"
    assert figures["refused"] > 0
    assert figures["peak_mib"] < 512


@pytest.mark.parametrize("kind", ["clients", "engines"])
def test_the_gateway(kind: str) -> None:
    code, figures, said = ran(SOCKETS, kind, "--count", COUNT)
    assert code == 0, said[-4000:]
    assert figures["inputs"] == int(COUNT)
    assert int(figures["statuses"]["200"]) > 0


@pytest.mark.parametrize(
    ("name", "verdict"), [("crash", "crashed"), ("hang", "hung"), ("greed", "crashed"),
                          ("speechless", "crashed")]
)  # fmt: skip
def test_a_fault_is_found(
    name: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness itself: each kind of fault is counted, and its input is kept."""
    monkeypatch.delenv("DEPLOYER_MEASURED", raising=False)
    folder = ("--folder", str(tmp_path))
    code, found, _ = ran(FUZZ, f"faulty-{name}", "--count", "60", *folder)
    figures = found[f"faulty-{name}"]
    assert code == 1
    assert figures[verdict] > 0
    assert figures["taken"] > 0
    assert figures["untried"] == 0
    assert sum(figures[each] for each in ("taken", "refused", verdict)) == 60
    kept = sorted(tmp_path.glob("*.input"))
    assert len(kept) == figures[verdict]
    assert kept[0].read_bytes() == bytes([7])
