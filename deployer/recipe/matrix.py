"""A matrix: one checkpoint in many formats, and the workload they are all measured with."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from deployer.errors import UsageError
from deployer.recipe.document import read_document
from deployer.recipe.loadtest import Slo
from deployer.recipe.section import Positive, Section, Text

FormatName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=40)]
_NO_NAME = re.compile(r"[^a-z0-9._-]+")
Setting = str | int | float | bool


class Format(Section):
    """One format: a recipe, and the fields in which it differs."""

    name: FormatName = Field(description="Name of the row.")
    recipe: Text | None = Field(
        None, description="Recipe, relative to the matrix; default: the matrix's."
    )
    set: dict[str, Setting | dict[str, Setting]] = Field(
        default_factory=dict,
        description="Fields of the recipe, FIELD: VALUE, as --set has them; a mapping replaces a "
        "section.",
    )


class Measure(Section):
    """How every format is measured."""

    trials: Annotated[int, Field(ge=1, le=100)] = Field(
        3, description="Turns of every format; fewer than 3 tell little of the noise."
    )
    users: Annotated[int, Field(ge=2, le=10_000)] = Field(
        8, description="Concurrent streams of the loaded level; the other level has one."
    )
    duration: Annotated[int, Field(ge=1, le=86_400)] = Field(
        15, description="Measured seconds of each level."
    )
    warmup: Annotated[int, Field(ge=0, le=3600)] = Field(2, description="Seconds left out.")
    prompt_tokens: Annotated[int, Field(ge=8, le=1_000_000)] = Field(
        64, description="Length of the prompts, in tokens, about."
    )
    output_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        64, description="max_tokens of each request."
    )
    context: Annotated[int, Field(ge=64, le=10_000_000)] = Field(
        2048, description="Tokens a request may use; every server gets the same."
    )
    slo: Slo = Field(default_factory=Slo, description="What a request must keep to be goodput.")
    preset: Literal["quick", "standard", "fixed-4096"] = Field(
        "quick", description="Windows on which the quality of every format is scored."
    )
    tasks: tuple[Text, ...] = Field(
        (), description="Tasks asked of every format once: humaneval, instructions, lm-eval:NAME."
    )
    task_limit: Positive | None = Field(None, description="Items of each task at most.")

    def overrides(self) -> list[str]:
        """The recipe fields that are the same for every format."""
        return [
            f"quality.preset={self.preset}",
            f"serve.context={self.context}",
            f"serve.parallel={self.users}",
        ]


class Matrix(Section):
    """What is compared."""

    version: Literal[1] = Field(description="Version of the matrix format.")
    name: FormatName = Field(description="Name of the comparison.")
    recipe: Text | None = Field(
        None, description="The recipe of formats that name none, relative to the matrix."
    )
    formats: Annotated[tuple[Format, ...], Field(min_length=1, max_length=200)]
    measure: Measure = Field(default_factory=Measure)

    @model_validator(mode="after")
    def _each_its_own(self) -> Matrix:
        counts = Counter(each.name for each in self.formats)
        problems = [f"the format {name} is given {n} times" for name, n in counts.items() if n > 1]
        problems += [
            f"format {each.name} has no recipe, and the matrix has none for all"
            for each in self.formats
            if each.recipe is None and self.recipe is None
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def chosen(self, only: Sequence[str] = (), skip: Sequence[str] = ()) -> Matrix:
        """The matrix with the formats in `only` (all where it names none), less those in `skip`.

        They keep their order. Raises UsageError for a name it does not have, or if none is left.
        """
        known = [each.name for each in self.formats]
        if unknown := sorted({*only, *skip}.difference(known)):
            raise UsageError(
                f"the matrix has no format {', '.join(unknown)}", f"It has: {', '.join(known)}."
            )
        wanted = set(only or known).difference(skip)
        if not wanted:
            raise UsageError("no format is left to compare", f"There are: {', '.join(known)}.")
        formats = tuple(each for each in self.formats if each.name in wanted)
        return self.model_copy(update={"formats": formats})

    def recipe_of(self, chosen: Format) -> Path:
        """The recipe file of a format."""
        return Path(str(chosen.recipe or self.recipe))

    def overrides_of(self, chosen: Format) -> list[str]:
        """What is set of a format's recipe: the format's own fields last."""
        own = [f"{field}={json.dumps(value)}" for field, value in chosen.set.items()]
        return [*self.measure.overrides(), *own]


def read_matrix(path: Path) -> Matrix:
    """Read a matrix; its recipes' paths become absolute.

    Raises RecipeError with every problem, UsageError where there is no such file.
    """
    matrix = read_document(path, Matrix, "matrix")
    base = path.resolve().parent

    def located(name: str | None) -> str | None:
        return None if name is None else str(base / Path(name).expanduser())

    formats = tuple(
        each.model_copy(update={"recipe": located(each.recipe)}) for each in matrix.formats
    )
    return matrix.model_copy(update={"recipe": located(matrix.recipe), "formats": formats})


def matrix_of(recipes: Sequence[Path], measure: Measure) -> Matrix:
    """The matrix of recipes named one by one; each format is named after its file."""
    names = [_NO_NAME.sub("-", path.stem.lower()).strip("-._")[:40] or "format" for path in recipes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"several recipes are named {', '.join(twice)}",
            "Formats are named after the files of their recipes: write a matrix to name them.",
        )
    formats = tuple(
        Format(name=name, recipe=str(path.resolve()))
        for name, path in zip(names, recipes, strict=True)
    )
    return Matrix(version=1, name="recipes", formats=formats, measure=measure)
