"""A short matrix for real: builds, servers, Locust, the page, the figures, and what follows."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import deployer, home_beside, must
from guard import REPOSITORY

from deployer.comparison import COMPARISON, FIGURES, REPORT, TABLE, Comparison, read_comparison
from deployer.home import Home

pytestmark = pytest.mark.integration

RECIPES = REPOSITORY / "recipes"
MATRIX = f"""\
version: 1
name: short
recipe: {RECIPES / "smollm2-q4_0.yaml"}
measure:
  trials: 2
  users: 4
  duration: 3
  warmup: 1
  prompt_tokens: 32
  output_tokens: 16
  slo: {{ttft_p95_ms: 5000}}
  tasks: [instructions]
  task_limit: 3
formats:
  - {{name: f16, recipe: {RECIPES / "smollm2-f16.yaml"}}}
  - {{name: q4_0}}
  - {{name: strict, set: {{quality.max_perplexity_ratio: 1.01}}}}
  - {{name: nf4, recipe: {RECIPES / "smollm2-bf16.yaml"}, set: {{
      quantization.method: bitsandbytes, quantization.scheme: nf4}}}}
"""


@pytest.fixture(scope="module")
def compared(home: Home, tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, dict[str, Any]]:
    """The document of `deployer compare` for the short matrix, and the home it is stored in."""
    root = tmp_path_factory.mktemp("compare")
    beside = home_beside(home, root / "home", "store", "bundles")
    matrix = root / "short.yaml"
    matrix.write_text(MATRIX, encoding="utf-8")
    return beside, must("compare", "--matrix", matrix, home=beside)


@pytest.fixture
def folder(compared: tuple[Home, dict[str, Any]]) -> Path:
    return Path(compared[1]["folder"])


@pytest.fixture
def comparison(folder: Path) -> Comparison:
    return read_comparison(folder)


def test_formats_are_measured_in_turns(comparison: Comparison) -> None:
    assert [(t.format, t.number) for t in comparison.trials] == [
        ("f16", 1), ("q4_0", 1), ("q4_0", 2), ("f16", 2),
    ]  # fmt: skip
    f16, q4_0 = (comparison.row(name) for name in ("f16", "q4_0"))
    for row in (f16, q4_0):
        assert row.status == "measured"
        assert row.serving and row.size and row.quality
        assert row.serving.single.failed == row.serving.loaded.failed == 0
        assert row.serving.loaded.output and min(row.serving.loaded.output.values) > 1
        assert row.serving.single.prefill and row.serving.single.decode
        assert row.serving.loaded.ttft and row.serving.loaded.goodput
        assert row.serving.peak_rss_bytes
        assert row.serving.peak_rss_bytes.mean > row.size.weights_bytes
        assert re.search(r"[a-z]{3}", row.serving.sample)
    assert f16.size and q4_0.size
    assert 15.9 < f16.size.bits_per_weight < 16.3
    assert 2.8 < f16.size.weights_bytes / q4_0.size.weights_bytes < 3.1
    assert q4_0.quality and 1.1 < q4_0.quality["perplexity_ratio"]["value"] < 1.4
    assert q4_0.tasks[0].items == 3


def test_a_format_that_cannot_run_has_a_reason_and_no_number(
    comparison: Comparison, folder: Path
) -> None:
    nf4, strict = comparison.row("nf4"), comparison.row("strict")
    assert nf4.status == "unavailable" and nf4.reason and "on a CPU" in nf4.reason
    assert (nf4.size, nf4.quality, nf4.serving, nf4.tasks) == (None, None, None, ())
    assert strict.status == "refused" and strict.reason and "over 1.01" in strict.reason
    assert (strict.size, strict.serving) == (None, None)
    with (folder / TABLE).open(encoding="utf-8", newline="") as lines:
        (row,) = [row for row in csv.DictReader(lines) if row["format"] == "nf4"]
    numbers = {name: text for name, text in row.items() if re.fullmatch(r"[\d.e+-]+", text or "")}
    assert numbers == {}


def test_the_page_and_the_figures(folder: Path) -> None:
    page = (folder / REPORT).read_text("utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", page)
    assert all(name in page for name in ("f16", "q4_0", "strict", "nf4"))
    pictures = sorted((folder / FIGURES).glob("*.png"))
    assert len(pictures) == 3
    for path in pictures:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path.stat().st_size > 10_000


def test_a_result_is_no_regression_of_itself_but_a_slower_one_is(
    compared: tuple[Home, dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    beside, document = compared
    assert must("compare", folder.name, folder, home=beside)["regressed"] == 0
    assert must("loadtest", "compare", folder.name, folder, home=beside)["regressed"] == 0
    before = with_rates(document, tmp_path / "before", 100.0)
    after = with_rates(document, tmp_path / "after", 50.0)
    ran = deployer("compare", before, after, "--json", home=beside)
    found = [c["figure"] for c in ran.document["changes"] if c["verdict"] == "regressed"]
    assert (ran.code, found) == (4, ["output"])


def with_rates(document: dict[str, Any], folder: Path, rate: float) -> Path:
    """The document with other output rates of one format, both trials nearly the same."""
    changed = json.loads(json.dumps(document))
    output = {"values": [rate, rate], "mean": rate, "low": rate - 1, "high": rate + 1}
    changed["rows"][1]["serving"]["loaded"]["output"] = output
    folder.mkdir()
    (folder / COMPARISON).write_text(json.dumps(changed), encoding="utf-8")
    return folder


def test_a_format_is_recommended_from_what_was_measured(
    compared: tuple[Home, dict[str, Any]],
) -> None:
    beside, _ = compared
    environment = RECIPES / "environments" / "edge-cpu.yaml"
    ran = deployer("recommend", "--environment", environment, "--json", home=beside)
    assert ran.code in (0, 1), ran.err  # a slow machine may meet no objective
    ruled_out = json.dumps(ran.document)
    assert "nf4" in ruled_out and "strict" in ruled_out


def test_what_cannot_be_asked(home: Home, tmp_path: Path) -> None:
    alone = home_beside(home, tmp_path / "alone")
    for arguments, code, words in (
        (("compare",), 2, "name recipes, or a matrix"),
        (("compare", "--matrix", "none.yaml"), 2, "there is no matrix none.yaml"),
        (("compare", "a", "b"), 2, "holds no stored comparison"),
        (("compare", "a"), 2, "two stored results are compared, not 1"),
        (("compare", RECIPES / "none.yaml"), 2, "there is no recipe"),
        (("recommend", "--environment", "moon"), 2, "moon"),
    ):
        ran = deployer(*arguments, home=alone)
        assert (ran.code, words in ran.err) == (code, True), ran.err
