"""The texts that ship: whole, disjoint, and found by the names that recipes give them."""

import re
from itertools import product

import pytest
from guard import REPOSITORY
from stage_doubles import FakeContext

from deployer.recipe import TEXTS, read_recipe
from deployer.stages.disjoint import require_disjoint
from deployer.workflow.planned import DATA, calibration_file, evaluation_text

HAN = re.compile(r"[^\u3400-\u9fff]")
RUN = 16
SIMPLIFIED = set("国学为时说对问来见东车书长门开关马鸟鱼龙龟风飞点无与万个义习乡乱争亲仅从会体")


def text(purpose: str, language: str) -> str:
    return (DATA / f"{purpose}-{language}.txt").read_text(encoding="utf-8")


def runs(content: str) -> set[str]:
    """All runs of `RUN` Chinese characters, whatever punctuation stands between them."""
    plain = HAN.sub("", content)
    return {plain[i : i + RUN] for i in range(len(plain) - RUN + 1)}


@pytest.mark.parametrize("language", TEXTS)
def test_no_paragraph_stands_in_both_texts_of_a_language(language, tmp_path):
    calibration, evaluation = (DATA / f"{p}-{language}.txt" for p in ("calibration", "evaluation"))
    require_disjoint(calibration, evaluation, FakeContext(tmp_path))
    parts = [set(text(p, language).split("\n\n")) for p in ("calibration", "evaluation")]
    assert all(parts) and not parts[0] & parts[1]


def test_the_chinese_texts_share_no_run_of_characters():
    assert not runs(text("calibration", "zh")) & runs(text("evaluation", "zh"))


@pytest.mark.parametrize("purpose", ["calibration", "evaluation"])
def test_the_chinese_texts_are_traditional_and_nothing_else(purpose):
    content = text(purpose, "zh")
    assert len(content) > 13_000
    assert not set(content) & (SIMPLIFIED - {"个", "与"})
    assert not re.search(r"[0-9A-Za-z]", content)


def test_every_text_has_its_origin():
    told = (DATA / "README.md").read_text(encoding="utf-8")
    for purpose, language in product(("calibration", "evaluation"), TEXTS):
        assert f"`{purpose}-{language}.txt`" in told


@pytest.mark.parametrize(("chosen", "language"), [("null", "en"), *((t, t) for t in TEXTS)])
def test_a_recipe_names_a_text_by_its_language(chosen, language):
    recipe = read_recipe(
        REPOSITORY / "recipes" / "llama-3.1-8b-q4_0.yaml",
        [f"quality.text={chosen}", f"calibration.text={chosen}"],
    )
    assert evaluation_text(recipe) == DATA / f"evaluation-{language}.txt"
    assert calibration_file(recipe) == DATA / f"calibration-{language}.txt"


def test_a_recipe_names_a_text_by_its_path(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("words", encoding="utf-8")
    recipe = read_recipe(REPOSITORY / "recipes" / "llama-3.1-8b-q4_0.yaml", [f"quality.text={own}"])
    assert evaluation_text(recipe) == own
