"""Texts of a hub's data set: a real parquet file, from the hub to the quality record."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import must
from fake_hub import COMMIT, DATASET, FakeHub, serve
from guard import REPOSITORY

from deployer.errors import StageError
from deployer.home import Home
from deployer.progress import SILENT
from deployer.stages.context import StageContext
from deployer.stages.disjoint import require_disjoint
from deployer.toolchains.provision import ensure

pytestmark = pytest.mark.integration

SHIPPED = (REPOSITORY / "deployer" / "data" / "calibration-en.txt").read_text("utf-8")
PROSE = "".join(SHIPPED.splitlines(keepends=True)[:40])
WRITE = """
import json, sys
import pyarrow, pyarrow.parquet
rows = pyarrow.Table.from_pylist(json.load(sys.stdin))
pyarrow.parquet.write_table(rows, sys.argv[1])
"""


def write_parquet(home: Home, path: Path, rows: list[dict[str, Any]]) -> Path:
    python = ensure("parquet", home).python
    given = json.dumps(rows)
    subprocess.run([python, "-c", WRITE, path], input=given, text=True, check=True, timeout=60)
    return path


def cut(text: str) -> list[dict[str, Any]]:
    """The rows of a text as WikiText has them: a line with its end, or an empty one."""
    lines = text.splitlines(keepends=True)
    return [{"text": line if line.strip() else "", "id": 1} for line in lines]


@pytest.fixture
def own(home: Home, tmp_path: Path) -> Home:
    """A home with the shared toolchains and no download of another test."""
    for name in ("parquet", "llama-cpp"):
        ensure(name, home)
    root = tmp_path / "home"
    root.mkdir()
    (root / "toolchains").symlink_to(home.toolchains, target_is_directory=True)
    return Home(root)


@pytest.fixture
def hub(home: Home, tmp_path: Path) -> Iterator[FakeHub]:
    parquet = write_parquet(home, tmp_path / "test.parquet", cut(PROSE))
    rows = "\n".join(json.dumps(row) for row in cut(PROSE))
    files = {"raw/test.parquet": parquet.read_bytes(), "raw/test.jsonl": rows.encode()}
    with serve(FakeHub(files)) as running:
        yield running


def test_a_data_set_of_the_hub_is_scored(
    own: Home, hub: FakeHub, demo_gguf: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        f"version: 1\nname: tiny\nsource: {{gguf: {demo_gguf}}}\nquantization: {{method: none}}\n"
        f"quality: {{dataset: {DATASET}, file: raw/test.parquet, window: 64, windows: 2}}\n",
        encoding="utf-8",
    )
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(own.root / "hf")}
    built = must("build", recipe, home=own, env=env)
    assert built["stages"][0]["name"] == "evaluation-text"
    quality = built["quality"]
    assert quality["corpus"] == f"{DATASET} raw/test.parquet"
    assert quality["corpus_revision"] == COMMIT
    assert quality["corpus_sha256"] == hashlib.sha256(PROSE.encode()).hexdigest()
    assert 1 < quality["perplexity"]["value"] < 200

    other = ["--set", "quality.dataset=some/texts", "--set", "quality.file=raw/test.jsonl"]
    again = must("evaluate", "tiny", *other, home=own, env=env)["quality"]
    assert again["corpus"] == f"{DATASET} raw/test.jsonl"
    assert again["corpus_sha256"] == quality["corpus_sha256"]
    assert again["perplexity"] == quality["perplexity"]


def test_a_parquet_calibration_set_is_compared_with_the_evaluation_text(
    home: Home, tmp_path: Path
) -> None:
    context = StageContext(home, SILENT, tmp_path / "logs")
    line = "A line of evaluation text that is long enough to count."
    (tmp_path / "e.txt").write_text(f"{line}\n", encoding="utf-8")

    def compare(content: str) -> None:
        rows = [
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "x", "content": content}]}
        ]
        path = write_parquet(home, tmp_path / "c.parquet", rows * 2000)
        require_disjoint(path, tmp_path / "e.txt", context)

    compare("another line of text that is long enough to count")
    with pytest.raises(StageError, match="share 1 lines"):
        compare(f"first\n{line}")


def test_a_file_that_holds_no_such_rows_is_refused(home: Home, tmp_path: Path) -> None:
    context = StageContext(home, SILENT, tmp_path / "logs")
    path = write_parquet(home, tmp_path / "c.parquet", [{"id": 1, "content": "a"}])
    (tmp_path / "e.txt").write_text("a", encoding="utf-8")
    with pytest.raises(StageError, match="no column messages or text; it has id, content"):
        require_disjoint(path, tmp_path / "e.txt", context)
    path.write_bytes(b"PAR1 columns PAR1")
    with pytest.raises(StageError, match="no usable parquet file"):
        require_disjoint(path, tmp_path / "e.txt", context)
