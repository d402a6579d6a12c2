"""The section `loadtest` of a recipe: what load to put on the server, and what it must keep."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from deployer.recipe import gates as expressions
from deployer.recipe.section import Millis, Section, Text

Profile = Literal[
    "smoke", "sync", "concurrent", "constant", "poisson", "sweep", "replay", "chat", "prefix"
]
PROFILES: tuple[str, ...] = get_args(Profile)
OPEN_LOOPS = ("constant", "poisson", "sweep", "replay")
"""Profiles whose requests are sent when they are due, however slow the answers are."""
ONE_USER = ("smoke", "sync")
Gate = Annotated[str, Field(min_length=1, max_length=100)]


class Slo(Section):
    """Service-level objectives; a load test that misses one exits 1."""

    ttft_p95_ms: Millis | None = Field(None, description="95th percentile of time to first token.")
    tpot_p95_ms: Millis | None = Field(
        None, description="95th percentile of time per output token."
    )
    e2e_p95_ms: Millis | None = Field(None, description="95th percentile of the whole request.")
    max_error_rate: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0, description="Share of requests that may fail."
    )


class LoadTest(Section):
    """The load test that `make demo` and `deployer loadtest` run."""

    profile: Profile = Field(
        "smoke",
        description="smoke: a few requests, one user. sync: one user for `duration`. concurrent: "
        "a closed loop of users. constant, poisson: `rate` requests per second, sent when they "
        "are due. sweep: rates up to saturation. replay: the requests of `trace`. chat: "
        "conversations. prefix: one system prompt for all.",
    )
    users: Annotated[int, Field(ge=1, le=10_000)] = Field(
        8, description="Concurrent users of the profiles concurrent, chat and prefix."
    )
    rate: Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)] = Field(
        1.0, description="Requests per second of constant and poisson; the first rate of a sweep."
    )
    duration: Annotated[int, Field(ge=1, le=86_400)] = Field(
        20, description="Measured seconds, after the warm-up; of each rate of a sweep."
    )
    warmup: Annotated[int, Field(ge=0, le=3600)] = Field(3, description="Seconds left out.")
    trials: Annotated[int, Field(ge=1, le=30)] = Field(
        1, description="How often the load is repeated; several trials give confidence intervals."
    )
    prompt_tokens: Annotated[int, Field(ge=8, le=1_000_000)] = Field(
        64, description="Length of the prompts, in tokens, about."
    )
    prompt_tokens_sd: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0, description="Standard deviation of the prompts' lengths; 0: all alike."
    )
    output_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        64, description="max_tokens of each request."
    )
    output_tokens_sd: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0, description="Standard deviation of max_tokens; 0: all alike."
    )
    chats: Text | None = Field(
        None,
        description="JSONL file of real chats, whose prompts and lengths are used; not by "
        "replay, chat and prefix.",
    )
    trace: Text | None = Field(
        None, description="JSONL or CSV file of the requests that the profile replay sends."
    )
    ignore_eos: bool = Field(
        False, description="Ask for exactly max_tokens; fewer are an error, short_output."
    )
    cache: Literal["cold", "warm"] = Field(
        "cold",
        description="cold: every prompt begins differently. warm: a few prompts, sent once before.",
    )
    turns: Annotated[int, Field(ge=1, le=100)] = Field(
        4, description="Questions of one conversation in the profile chat."
    )
    think: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = Field(
        1.0, description="Seconds between an answer and the next question in the profile chat."
    )
    prefix_tokens: Annotated[int, Field(ge=8, le=1_000_000)] = Field(
        512, description="Length of the shared system prompt in the profile prefix, about."
    )
    slo: Slo = Field(default_factory=Slo)
    gates: Annotated[tuple[Gate, ...], Field(max_length=50)] = Field(
        (), description="More objectives, each NAME OPERATOR NUMBER: goodput >= 0.95."
    )

    @field_validator("gates")
    @classmethod
    def _readable(cls, gates: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(expressions.parse(gate).text for gate in gates)

    @model_validator(mode="after")
    def _fits_the_profile(self) -> LoadTest:
        """What contradicts itself is told at once; what a profile does not use is ignored."""
        problems = []
        if self.profile == "replay" and self.trace is None:
            problems.append("the profile replay needs a trace: name the file as trace")
        if self.chats is not None and (self.prompt_tokens_sd or self.output_tokens_sd):
            problems.append("chats have lengths of their own: leave the _sd fields out")
        if self.cache == "warm" and self.profile in ("replay", "chat", "prefix"):
            problems.append(f"cache warm does not fit the profile {self.profile}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def is_open(self) -> bool:
        """Whether requests are sent when they are due, however slow the answers are."""
        return self.profile in OPEN_LOOPS
