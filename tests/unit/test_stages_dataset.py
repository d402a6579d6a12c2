"""Texts of a hub's data set: fetched, turned into plain text, and kept apart from each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, DATASET
from stage_doubles import FakeContext

from deployer.errors import StageError
from deployer.recipe import Calibration, Quality
from deployer.stages import dataset, hub
from deployer.stages.disjoint import require_disjoint

ROWS = ["", " = A title = \n", "", " Two sentences . They end here . \n", "no end", "次の行"]
TEXT = "\n = A title = \n\n Two sentences . They end here . \nno end\n次の行\n"
LINE = "A line of evaluation text that is long enough to count."
HAN = "學而時習之，不亦說乎？有朋自遠方來。"


def pinned(file: str) -> dict[str, str]:
    return {"dataset": DATASET, "revision": COMMIT, "file": file}


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Content of the hub's files, by their last names; every download comes from here."""
    content: dict[str, str] = {}

    def download(pin: Mapping[str, str], section: str, target: Path, *_: Any) -> None:
        target.write_text(content[pin["file"]], encoding="utf-8")

    monkeypatch.setattr(hub, "download_dataset_file", download)
    return content


def rows_as_text(request: Mapping[str, Any]) -> dict[str, Any]:
    """Stand for the worker: what it is asked, and the text it writes."""
    assert Path(request["path"]).suffix == ".parquet"
    Path(request["out"]).write_text(Path(request["path"]).read_text("utf-8"), "utf-8")
    return {"rows": 1, "characters": 3}


# Resolve


def test_a_section_without_a_data_set_asks_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "resolve_dataset_revision", None)
    assert dataset.resolve(Quality()) is None
    assert dataset.resolve(Calibration()) is None


def test_a_data_set_is_pinned_in_the_name_of_its_section(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def resolve(*given: Any) -> str:
        asked.append(given)
        return COMMIT

    monkeypatch.setattr(hub, "resolve_dataset_revision", resolve)
    for section in (Quality, Calibration):
        chosen = section(dataset=DATASET, revision="v1", file="a.txt")
        assert dataset.resolve(chosen) == pinned("a.txt")
    assert asked == [(DATASET, "v1", "quality"), (DATASET, "v1", "calibration")]


# Fetch


def test_a_calibration_file_is_left_as_it_is(downloads: dict[str, str], tmp_path: Path) -> None:
    downloads["data/c.PARQUET"] = "PAR1"
    found = dataset.fetch_calibration(pinned("data/c.PARQUET"), tmp_path, FakeContext(tmp_path))
    assert found == {"name": "calibration.parquet"}
    assert (tmp_path / "calibration.parquet").read_text("utf-8") == "PAR1"


def test_a_text_is_taken_as_it_is(downloads: dict[str, str], tmp_path: Path) -> None:
    downloads["test.txt"] = "one\r\ntwo"
    found = dataset.fetch_evaluation(pinned("test.txt"), tmp_path, FakeContext(tmp_path))
    assert (tmp_path / found["name"]).read_bytes() == b"one\r\ntwo"


def test_rows_are_joined_to_the_text_they_were_cut_from(
    downloads: dict[str, str], tmp_path: Path
) -> None:
    lines = [json.dumps({"text": row, "id": "x"}, ensure_ascii=False) for row in ROWS]
    downloads["test.jsonl"] = "\n".join([*lines, "", json.dumps({"text": None})])
    found = dataset.fetch_evaluation(pinned("test.jsonl"), tmp_path, FakeContext(tmp_path))
    assert found == {"name": "quality.txt", "rows": 7, "characters": len(TEXT)}
    assert (tmp_path / "quality.txt").read_bytes() == TEXT.encode()
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"content": "a"}'])
def test_a_row_without_text_is_named(downloads: dict[str, str], tmp_path: Path, line: str) -> None:
    downloads["test.jsonl"] = '{"text": "a"}\n' + line
    with pytest.raises(StageError, match=r"line 2 of quality\.jsonl .* text"):
        dataset.fetch_evaluation(pinned("test.jsonl"), tmp_path, FakeContext(tmp_path))


def test_parquet_is_read_in_its_toolchain(downloads: dict[str, str], tmp_path: Path) -> None:
    downloads["test.parquet"] = "abc"
    context = FakeContext(tmp_path, {"read_rows": rows_as_text})
    found = dataset.fetch_evaluation(pinned("test.parquet"), tmp_path, context)
    assert found == {"name": "quality.txt", "rows": 1, "characters": 3}
    assert list(context.toolchains) == ["parquet"]
    assert context.asked[0][1]["columns"] == ["text"]
    assert not (tmp_path / "quality.parquet").exists()


# Calibration and evaluation text


def share(tmp_path: Path, calibration: str, name: str, evaluation: str) -> str:
    """The message of the refusal; "" where the two are taken for disjoint."""
    (tmp_path / name).write_text(calibration, "utf-8")
    (tmp_path / "e.txt").write_text(f"other\n{evaluation}\n", "utf-8")
    context = FakeContext(tmp_path, {"read_rows": rows_as_text})
    try:
        require_disjoint(tmp_path / name, tmp_path / "e.txt", context)
    except StageError as error:
        return error.message
    return ""


def test_chats_that_hold_evaluation_text_are_refused(tmp_path: Path) -> None:
    chat = json.dumps({"messages": [{"role": "user", "content": f"a\n{LINE}"}]})
    assert "share 1 lines" in share(tmp_path, chat, "c.jsonl", LINE)
    assert not share(tmp_path, '{"messages": []}\nno JSON at all\n', "c.jsonl", LINE)


def test_parquet_that_holds_evaluation_text_is_refused(tmp_path: Path) -> None:
    assert "share 1 lines" in share(tmp_path, f"x\n {LINE}\n", "c.parquet", LINE)
    assert not share(tmp_path, "nothing of it", "c.parquet", LINE)


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("x" * 40, True),
        ("x" * 39, False),
        (HAN, True),
        (HAN[:16], True),
        (HAN[:15], False),
        (f"{HAN[:8]} Confucius", False),  # as much Han as not
        ("𠀀" * 16, True),
    ],
)
def test_the_shortest_line_that_counts(tmp_path: Path, line: str, counts: bool) -> None:
    assert bool(share(tmp_path, line, "c.txt", line)) is counts
