"""Mixed precision from recipe to bundle, with workers that answer from a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from model_files import F16, Q4_0, Tensor, gguf
from stage_doubles import FakeContext, scored

from deployer.errors import PlanError, StageError, UsageError
from deployer.home import Home
from deployer.progress import SILENT
from deployer.workflow import building, execution, sensitivity

SOURCE = gguf(tensors=[Tensor("blk.0.ffn_up.weight", (64, 3), F16)])
SMALLER = gguf(tensors=[Tensor("blk.0.ffn_up.weight", (64, 3), Q4_0)])
RECIPE = """\
version: 1
name: tiny
source: {gguf: model.gguf}
quantization: {method: gguf, mixed: {budget_bpw: 5.0, types: [q4_0, q8_0]}}
"""
TABLE = {
    "groups": [
        {
            "name": "blk.0.ffn", "tensors": ["blk.0.ffn_up.weight"], "parameters": 192,
            "bytes": {"f16": 384, "q8_0": 204, "q4_0": 108},
            "kld": {"f16": 0.0, "q8_0": 0.001, "q4_0": 0.1},
        }
    ],
    "rest": {"parameters": 0, "bytes": 0}, "parameters": 192, "tokens": 255, "ids_sha256": "s",
    "seconds": 1.0, "engine_version": "1",
}  # fmt: skip


class Tools:
    """Stand for the toolchains, and remember what they were asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[str, Any]] = []

    def context(self, *_: object) -> FakeContext:
        made = FakeContext(
            self.root,
            {
                "measure_sensitivity": TABLE, "llama-quantize": self.quantize,
                "score_llama_cpp": self.score,
            },
        )  # fmt: skip
        made.asked = self.asked
        return made

    def quantize(self, arguments: tuple[str, ...]) -> dict[str, Any]:
        Path(arguments[-2]).write_bytes(SMALLER)
        return {"log": ""}

    def score(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return scored(request, 10.0)

    def named(self, name: str) -> list[Any]:
        return [request for asked, request in self.asked if asked == name]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    made = Tools(tmp_path)
    monkeypatch.setattr(execution, "StageContext", made.context)
    return made


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    (tmp_path / "model.gguf").write_bytes(SOURCE)
    return path


def test_a_build_makes_the_mix_that_fits_the_budget(recipe: Path, home: Home, tools: Tools) -> None:
    manifest = building.build(recipe, (), home, SILENT).bundle.manifest
    (arguments,) = tools.named("llama-quantize")
    assert r"^blk\.0\.ffn_up\.weight$=q4_0" in arguments
    assert manifest.quantization["mixed"] == {
        "bits_per_weight": 4.5, "kl_divergence": 0.1, "types": {"blk.0.ffn": "q4_0"},
    }  # fmt: skip


def test_another_budget_measures_nothing_again(recipe: Path, home: Home, tools: Tools) -> None:
    building.build(recipe, (), home, SILENT)
    building.build(recipe, ["quantization.mixed.budget_bpw=9"], home, SILENT)
    assert len(tools.named("measure_sensitivity")) == 1
    assert r"^blk\.0\.ffn_up\.weight$=q8_0" in tools.named("llama-quantize")[1]


def test_it_is_measured_on_the_calibration_text_alone(
    recipe: Path, home: Home, tools: Tools, tmp_path: Path
) -> None:
    text = "a line that is long enough to be compared with the other text\n"
    (tmp_path / "c.txt").write_text(text, encoding="utf-8")
    sensitivity.measure(recipe, [f"calibration.text={tmp_path / 'c.txt'}"], home, SILENT)
    (request,) = tools.named("measure_sensitivity")
    assert request["text"] == text
    assert request["types"] == ["q4_0", "q8_0"]
    (tmp_path / "e.txt").write_text(text, encoding="utf-8")
    both = [f"calibration.text={tmp_path / 'c.txt'}", f"quality.text={tmp_path / 'e.txt'}"]
    with pytest.raises(StageError, match="share 1 lines"):
        sensitivity.measure(recipe, both, home, SILENT)


def test_the_command_measures_and_shares_the_table_with_the_build(
    recipe: Path, home: Home, tools: Tools
) -> None:
    done = sensitivity.measure(recipe, (), home, SILENT)
    assert not done.cached
    document = done.as_json()
    assert document["groups"] == TABLE["groups"]
    assert [point["types"]["blk.0.ffn"] for point in document["curve"]] == ["q4_0", "q8_0", "f16"]
    assert document["mix"]["types"] == {"blk.0.ffn": "q4_0"}
    assert done.kinds == ["q4_0", "q8_0", "f16"]
    assert done.rows() == [("blk.0.ffn", "0.00 M", "0.100000", "0.001000", "0.000000")]
    assert done.curve_rows()[0] == ("4.500", "0.0 MB", "0.1000")
    building.build(recipe, (), home, SILENT)
    assert len(tools.named("measure_sensitivity")) == 1
    assert sensitivity.measure(recipe, (), home, SILENT).cached


def test_a_recipe_without_a_mix_is_measured_too(recipe: Path, home: Home, tools: Tools) -> None:
    plain = ["quantization={method: gguf, scheme: q4_0}"]
    assert sensitivity.measure(recipe, plain, home, SILENT).mix is None
    with pytest.raises(UsageError, match="rounds no weights"):
        sensitivity.measure(recipe, ["quantization={method: none}"], home, SILENT)


def test_a_budget_that_nothing_fits_is_refused(recipe: Path, home: Home, tools: Tools) -> None:
    with pytest.raises(PlanError, match=r"smallest mix takes 4\.500 bits"):
        building.build(recipe, ["quantization.mixed.budget_bpw=4.4"], home, SILENT)


def test_chats_are_no_text_to_measure_on(
    recipe: Path, home: Home, tools: Tools, tmp_path: Path
) -> None:
    chats = tmp_path / "c.jsonl"
    chats.write_text('{"messages": []}\n', encoding="utf-8")
    with pytest.raises(StageError, match="plain text"):
        sensitivity.measure(recipe, [f"calibration.chats={chats}"], home, SILENT)
