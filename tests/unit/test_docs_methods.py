"""The chapter on methods: both languages say the same, and what is computed in it is right."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from deployer.comparison import read_comparison
from deployer.recipe.quantization import GGUF_SCHEMES, SCHEMES
from deployer.report import comparison_markdown

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = {"en": "methods.md", "zh-TW": "methods.zh-TW.md"}
TEXTS = {
    name: (ROOT / "docs" / file).read_text(encoding="utf-8") for name, file in CHAPTERS.items()
}
PLACE = re.compile(r"^<!-- measured-table -->\n(.*?)^<!-- /measured-table -->$", re.M | re.S)
POINTS = {
    "en": ("Idea", "Costs", "Fails", "Runs"),
    "zh-TW": ("想法", "代價", "失靈", "執行"),
}
EXAMPLE = [1.2, 0.3, -0.1, -0.8]
MAINLAND = (
    "权", "数", "内", "默认", "信息", "软件", "质量", "優化", "支持", "文件夾", "數據", "算法",
    "服務器", "緩存", "激活值", "离", "准确", "线",
)  # fmt: skip
"""Simplified characters, and words that are not Taiwan's."""
both = pytest.mark.parametrize("language", CHAPTERS)


def _uniform():
    sys.path.insert(0, str(ROOT / "deployer" / "workers"))
    try:
        return importlib.import_module("_uniform")
    finally:
        sys.path.pop(0)


uniform = _uniform()


def outline(language: str) -> list[tuple[int, tuple[str, ...]]]:
    """Level of each heading, and the code words in it, which no translation changes."""
    titles = re.findall(r"^(#+) (.+)$", TEXTS[language], re.M)
    return [(len(marks), tuple(re.findall(r"`([^`]+)`", title))) for marks, title in titles]


def measured(language: str) -> str:
    places = PLACE.findall(TEXTS[language])
    assert len(places) == 1, "one place for the measured table"
    return str(places[0])


def methods(language: str) -> list[str]:
    """The sections of the single methods, headings included."""
    chapter = re.split(r"^## ", TEXTS[language], flags=re.M)[2]
    return re.split(r"^### ", chapter, flags=re.M)[1:]


def rows(language: str) -> list[list[str]]:
    """Cells of every table row outside the measured table."""
    text = PLACE.sub("", TEXTS[language])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def brief(value: float) -> str:
    """Three digits at most, as the chapter writes values."""
    return f"{round(value, 3):g}"


def test_both_languages_have_the_same_headings() -> None:
    assert outline("en") == outline("zh-TW")
    assert len(outline("en")) > 20


@both
def test_every_method_has_the_four_points_in_the_same_order(language: str) -> None:
    found = methods(language)
    assert len(found) >= len(SCHEMES)
    for section in found:
        bold = re.findall(r"^- \*\*(\w+)\.?\*\*", section, re.M)
        assert tuple(bold) == POINTS[language], section.splitlines()[0]


@both
@pytest.mark.parametrize("method", SCHEMES)
def test_every_method_of_a_recipe_is_explained_with_its_schemes(language: str, method: str) -> None:
    sections = [text for text in methods(language) if f"`{method}`" in text]
    assert sections, f"{method} is not explained"
    if method != "gguf":
        words = set(re.findall(r"`(\w+)`", "".join(sections)))
        assert set(SCHEMES[method]) <= words


@both
def test_the_types_that_are_named_exist(language: str) -> None:
    named = set(re.findall(r"`(i?q\d\w*)`", PLACE.sub("", TEXTS[language])))
    assert named and named <= set(GGUF_SCHEMES)


@both
def test_the_measured_table_is_the_stored_comparisons(language: str) -> None:
    """`tests/bench/publish.py` puts it there."""
    stored = read_comparison(ROOT / "docs" / "measured")
    assert measured(language).strip() == comparison_markdown(stored).strip()


@pytest.mark.parametrize("pattern", [r"\]\(([^)]+)\)", r"`([^`]+)`", r"(\d+\.\d+)"])
def test_links_code_and_figures_are_those_of_the_other_language(pattern: str) -> None:
    found = []
    for language, other in (("en", "zh-TW"), ("zh-TW", "en")):
        text = PLACE.sub("", TEXTS[language]).replace(CHAPTERS[other], "")
        text = re.sub(r"1\.3[45] 億", "", text)  # a count of weights, in other units
        found.append({" ".join(each.split()) for each in re.findall(pattern, text, re.S)})
    assert found[0] == found[1]


@both
def test_the_first_table_is_what_the_formula_gives(language: str) -> None:
    table = [row for row in rows(language) if row[0] in ("4", "8")]
    settings = [(bits, symmetric) for bits in (8, 4) for symmetric in (True, False)]
    assert len(table) == len(settings)
    for row, (bits, symmetric) in zip(table, settings, strict=True):
        grid = uniform.fit(EXAMPLE, bits=bits, symmetric=symmetric)
        codes = uniform.quantize(EXAMPLE, grid)
        values = uniform.dequantize(codes, grid)
        assert row[0] == str(bits)
        assert row[2] == f"{grid.scale.item():.3g}"
        assert row[3] == ", ".join(map(str, codes))
        assert row[4] == ", ".join(map(brief, values))
        zero = int(grid.zero.item())
        assert symmetric or re.search(rf"(?<![\d.]){zero}(?!\d)", TEXTS[language])


@both
def test_the_table_of_groups_is_what_the_formula_gives(language: str) -> None:
    weights = [*EXAMPLE, 12.0, *EXAMPLE[1:]]
    table = [row[1:] for row in rows(language) if len(row) == 9 and "---" not in row]
    head, one, four = table
    assert head == [f"{value:g}" for value in weights]
    for row, group in ((one, "tensor"), (four, 4)):
        restored = uniform.rounded(weights, bits=4, group=group)
        assert row == [brief(value) for value in restored]


@both
def test_the_bits_of_a_weight_are_what_the_formula_gives(language: str) -> None:
    table = rows(language)
    at = next(i for i, row in enumerate(table) if row[1:] == ["128", "64", "32", "16"])
    wanted = [f"{uniform.bits_per_weight(4, int(group)):g}" for group in table[at][1:]]
    assert table[at + 2][1:] == wanted


def test_double_quantization_saves_what_is_said() -> None:
    assert "0.127" in TEXTS["en"] and f"{8 / 64 + 32 / (64 * 256):.3f}" == "0.127"
    assert "instead of 0.5" in " ".join(TEXTS["en"].split()) and 32 / 64 == 0.5


def test_the_chinese_is_that_of_taiwan() -> None:
    assert [word for word in MAINLAND if word in TEXTS["zh-TW"]] == []
    for word in ("量化", "權重", "校準", "困惑度", "吞吐量", "延遲"):
        assert word in TEXTS["zh-TW"]


def test_bold_chinese_ends_before_punctuation() -> None:
    """After punctuation and before a character, ** is no end of bold text in CommonMark."""
    bold = re.findall(r"\*\*([^*\n]+)\*\*(.?)", TEXTS["zh-TW"])
    assert len(bold) > 40
    assert [text for text, after in bold if not text[-1].isalnum() and after.isalnum()] == []
