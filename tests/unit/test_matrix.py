"""Matrices: what they say, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from guard import REPOSITORY

from deployer.errors import RecipeError, UsageError
from deployer.recipe import read_recipe
from deployer.recipe.matrix import Measure, matrix_of, read_matrix

SHIPPED = sorted((REPOSITORY / "recipes" / "matrix").glob("*.yaml"))
TEXT = """\
version: 1
name: some
recipe: base.yaml
measure: {trials: 2, users: 4}
formats:
  - name: plain
  - name: other
    recipe: other.yaml
    set: {quantization.scheme: q8_0, quantization.imatrix: true}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "matrix.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_matrix_names_recipes_beside_it(tmp_path: Path) -> None:
    matrix = read_matrix(written(tmp_path, TEXT))
    plain, other = matrix.formats
    assert matrix.recipe_of(plain) == tmp_path / "base.yaml"
    assert matrix.recipe_of(other) == tmp_path / "other.yaml"


def test_every_format_gets_the_same_measure_and_then_its_own_fields(tmp_path: Path) -> None:
    matrix = read_matrix(written(tmp_path, TEXT))
    same = ["quality.preset=quick", "serve.context=2048", "serve.parallel=4"]
    assert matrix.overrides_of(matrix.formats[0]) == same
    own = ['quantization.scheme="q8_0"', "quantization.imatrix=true"]
    assert matrix.overrides_of(matrix.formats[1]) == [*same, *own]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("trials: 2", "trails: 2", "line 4: measure.trails: unknown key; did you mean trials?"),
        ("users: 4", "users: one", "line 4: measure.users:"),
        ("name: other", "name: plain", "the format plain is given 2 times"),
        ("recipe: base.yaml\n", "", "format plain has no recipe, and the matrix has none for all"),
        (
            "- name: plain",
            "- nome: plain",
            "line 6: formats.0.nome: unknown key; did you mean",
        ),
        ("version: 1", "version: 2", "line 1: version"),
        ("q8_0", "[1, 2]", "line 9: formats.1.set.quantization.scheme"),
    ],
)
def test_problems_are_told_with_their_line(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    assert old in TEXT
    with pytest.raises(RecipeError) as caught:
        read_matrix(written(tmp_path, TEXT.replace(old, new)))
    assert problem in str(caught.value)
    assert "docs/compare.md" in caught.value.hint


def test_no_matrix_and_no_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no matrix"):
        read_matrix(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="no format q9"):
        read_matrix(written(tmp_path, TEXT)).chosen(["plain", "q9"])
    with pytest.raises(UsageError, match="no format is left"):
        read_matrix(written(tmp_path, TEXT)).chosen(["plain"], ["plain"])


def test_some_formats_only(tmp_path: Path) -> None:
    matrix = read_matrix(written(tmp_path, TEXT))
    for chosen in (matrix.chosen(only=["other"]), matrix.chosen(skip=["plain"])):
        assert [each.name for each in chosen.formats] == ["other"]
    assert matrix.chosen() == matrix


def test_recipes_make_a_matrix_too(tmp_path: Path) -> None:
    matrix = matrix_of([tmp_path / "Some Model!.yaml", tmp_path / "b.yaml"], Measure(trials=1))
    assert [each.name for each in matrix.formats] == ["some-model", "b"]
    assert matrix.recipe_of(matrix.formats[1]) == tmp_path / "b.yaml"
    with pytest.raises(UsageError, match="several recipes are named b"):
        matrix_of([tmp_path / "b.yaml", tmp_path / "x" / "b.yaml"], Measure())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_format_of_a_shipped_matrix_is_a_recipe(path: Path) -> None:
    matrix = read_matrix(path)
    sources = set()
    for each in matrix.formats:
        recipe = read_recipe(matrix.recipe_of(each), matrix.overrides_of(each))
        sources.add(recipe.source.model_dump_json())
    assert len(sources) == 1
