"""`deployer recommend`: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from made_up_comparison import made_up_comparison

from deployer.cli import cli
from deployer.cli.recommending import recommend
from deployer.errors import UsageError
from deployer.recommending import Recommendation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(ROOT)
    path = tmp_path / "comparison.json"
    path.write_text(made_up_comparison().model_dump_json(), encoding="utf-8")
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["recommend", *arguments])


def test_the_answer_comes_first_and_the_table_has_a_reason_for_the_others(comparison: str) -> None:
    outcome = run("--environment", "edge-cpu", "--comparison", comparison)
    assert outcome.exit_code == 0
    lines = outcome.stdout.splitlines()
    assert lines[0] == "Take mixed (llama.cpp, 5.33 bits a weight) for edge-cpu."
    assert any(line.startswith("Runner-up: q4_k_m (") for line in lines)
    assert any(line.startswith("How sure: ") for line in lines)
    assert "needs 2.4 GB of memory, and 1.93 GB may be used" in outcome.stdout


def test_json_is_one_document_that_can_be_read_again(comparison: str) -> None:
    outcome = run("--environment", "gpu-24g", "--comparison", comparison, "--json")
    document = json.loads(outcome.stdout)
    assert Recommendation.model_validate(document).as_json() == document
    assert document["chosen"]["outlook"]["output"]["basis"] == "estimated"


def test_no_answer_ends_with_1_and_says_what_would_have_to_give(
    comparison: str, tmp_path: Path
) -> None:
    text = (ROOT / "recipes" / "environments" / "edge-cpu.yaml").read_text("utf-8")
    path = tmp_path / "tight.yaml"
    path.write_text(text.replace("tpot_p95_ms: 50", "tpot_p95_ms: 1"), encoding="utf-8")
    outcome = run("--environment", str(path), "--comparison", comparison)
    assert outcome.exit_code == 1
    assert outcome.stdout.startswith("No format of ")
    assert "What would have to give, nearest first:" in outcome.stdout
    document = run("--environment", str(path), "--comparison", comparison, "--json")
    assert document.exit_code == 1
    assert json.loads(document.stdout)["chosen"] is None


def test_without_a_comparison_it_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    outcome = run("--environment", "edge-cpu")
    assert isinstance(outcome.exception, UsageError)
    assert "deployer compare" in outcome.exception.hint


def test_the_shell_completes_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    context = recommend.make_context("recommend", ["--environment", "edge-cpu"])
    option = next(each for each in recommend.params if each.name == "environment")
    found = [item.value for item in option.shell_complete(context, "gpu")]
    assert found[:2] == ["gpu-24g", "gpu-80g"]
