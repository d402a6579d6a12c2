"""What all parts of a recipe share: strictness, and the kinds of values."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f-][^\x00-\x1f]*$")]
Positive = Annotated[int, Field(gt=0)]
Millis = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Repository = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=200)
]
Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w./-]*$", max_length=200)]


def check_dataset(dataset: str | None, file: str | None, revision: str | None) -> None:
    """Raise ValueError where a data set of the hub is named by halves."""
    if bool(dataset) != bool(file):
        raise ValueError("dataset and file belong together: name the file of the data set")
    if revision and not dataset:
        raise ValueError("revision belongs to dataset")


class Section(BaseModel):
    """A part of the recipe: immutable, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
