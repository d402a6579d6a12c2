"""How quality is measured, and the gate: what a model must keep to become a bundle."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from deployer.recipe.section import Repository, Revision, Section, Text, check_dataset


class WindowRule(NamedTuple):
    """How a text is cut: windows of `length` tokens, BOS included; None `most` is all."""

    length: int
    most: int | None


PRESETS: dict[str, WindowRule] = {
    "quick": WindowRule(512, 4),
    "standard": WindowRule(2048, 6),
    "fixed-4096": WindowRule(4096, None),
}
"""Presets of the window rule; the last is the fixed-length method of published perplexities."""


class Quality(Section):
    """How quality is measured; a model beyond one of the limits is not packaged."""

    text: Text | None = Field(
        None, description="A UTF-8 text file, or en or zh: a text that ships; default: en."
    )
    dataset: Repository | None = Field(
        None, description="A data set of the model hub, ORGANISATION/NAME; needs file."
    )
    revision: Revision | None = Field(
        None, description="Commit, tag or branch of the data set; the commit is recorded."
    )
    file: Text | None = Field(
        None,
        description="The file of the data set: .txt is taken as it is; .jsonl or .parquet have a "
        "column text, whose values are joined.",
    )
    preset: Literal["quick", "standard", "fixed-4096"] = Field(
        "quick",
        description="Windows that are scored. quick: 4 of 512 tokens. standard: 6 of 2048. "
        "fixed-4096: all of 4096, as in published tables.",
    )
    window: Annotated[int, Field(ge=64, le=131_072)] | None = Field(
        None, description="Tokens of a window, BOS included; default: the preset's."
    )
    windows: Annotated[int, Field(ge=1, le=100_000)] | Literal["all"] | None = Field(
        None, description="How many windows are scored, or all; default: the preset's."
    )
    max_perplexity_ratio: Annotated[float, Field(gt=1.0, le=100.0)] = Field(
        1.5, description="Limit of perplexity / perplexity of the 16-bit model, same text."
    )
    max_kl_divergence: Annotated[float, Field(gt=0.0, le=100.0)] = Field(
        1.0, description="Limit of the mean KL divergence from the 16-bit model, in nats a token."
    )
    min_top1_agreement: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.5, description="Least share of tokens where both models' first choice is the same."
    )
    max_perplexity: Annotated[float, Field(gt=1.0, le=10_000.0)] = Field(
        200.0, description="Limit of the perplexity itself; garbage is far above it."
    )

    @model_validator(mode="after")
    def _one_text(self) -> Quality:
        if self.text and self.dataset:
            raise ValueError("give one of text, dataset (found both)")
        check_dataset(self.dataset, self.file, self.revision)
        return self

    @property
    def rule(self) -> WindowRule:
        """The windows that are scored: what is set, else the preset's."""
        preset = PRESETS[self.preset]
        count = preset.most if self.windows is None else self.windows
        return WindowRule(self.window or preset.length, None if count == "all" else count)
