"""An environment: where a model shall be served, what it must keep to, and what that costs.

`deployer recommend` reads one and says which format suits it. It is a YAML file like a recipe, as
strict, with every problem told by its line; recipes/environments/ holds four to start from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from deployer.errors import UsageError
from deployer.recipe.document import SUFFIXES, read_document
from deployer.recipe.section import Millis, Positive, Section, Text

ENVIRONMENTS = Path("recipes") / "environments"
"""Where an environment that is given by its name lies, relative to the working directory."""
Amount = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class GpuKind(Section):
    """The GPUs of an environment, all of one kind; figures are of one of them."""

    name: Text = Field(description="As the driver names it, for example NVIDIA L4.")
    memory_gib: Amount = Field(description="Memory of one GPU.")
    bandwidth_gb_s: Amount = Field(description="Memory bandwidth of the data sheet, 10^9 bytes/s.")
    tflops: Amount = Field(
        description="16-bit matrix arithmetic of the data sheet without sparsity, 10^12 per second."
    )
    compute_capability: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")] = Field(
        description="In quotes, for example '8.9'."
    )
    count: Annotated[int, Field(ge=1, le=64)] = Field(1, description="How many there are.")


class Objectives(Section):
    """Latencies that 95 of 100 requests must keep, milliseconds."""

    ttft_p95_ms: Millis | None = Field(None, description="Time to first token.")
    tpot_p95_ms: Millis | None = Field(None, description="Time per output token.")
    e2e_p95_ms: Millis | None = Field(None, description="The whole request.")


class LeastQuality(Section):
    """How far a format may be from the 16-bit model; what is left out is no limit."""

    max_perplexity_ratio: Annotated[float, Field(ge=1.0, le=100.0)] | None = Field(
        None, description="Limit of perplexity / perplexity of the 16-bit model."
    )
    max_kl_divergence: Annotated[float, Field(gt=0.0, le=100.0)] | None = Field(
        None, description="Limit of the mean KL divergence, nats a token."
    )
    min_top1_agreement: Share | None = Field(
        None, description="Least share of tokens where both models' first choice is the same."
    )
    min_task_recovery: Amount | None = Field(
        None, description="Least score of every task, divided by the 16-bit model's."
    )


class Load(Section):
    """What the server will be asked: users who wait for their answers, or requests a second."""

    users: Positive | None = Field(None, description="Users who ask one request after another.")
    requests_per_s: Amount | None = Field(None, description="Requests that come, answered or not.")
    prompt_tokens: Positive = Field(description="Tokens of a prompt.")
    output_tokens: Positive = Field(description="Tokens of an answer.")

    @model_validator(mode="after")
    def _one_kind(self) -> Load:
        if (self.users is None) == (self.requests_per_s is None):
            raise ValueError("give one of users and requests_per_s")
        return self


class Environment(Section):
    """A kind of machine, its objectives, its load and its price."""

    version: Literal[1] = Field(description="Version of the environment format.")
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)] = Field(
        description="Name of the environment."
    )
    description: Text = Field(description="What it is, in a sentence.")
    device: Literal["cpu", "cuda"] = Field(description="Where the engine computes.")
    cores: Positive = Field(description="Physical cores; two vCPUs of a cloud are mostly one.")
    memory_gib: Amount = Field(description="Memory of the machine.")
    bandwidth_gb_s: Amount | None = Field(
        None, description="Bandwidth of the machine's memory, 10^9 bytes/s, where it is known."
    )
    gpu: GpuKind | None = Field(None, description="With device: cuda, the GPU.")
    slo: Objectives = Field(default_factory=Objectives)
    quality: LeastQuality = Field(default_factory=LeastQuality)
    load: Load
    price_per_hour: Amount = Field(description="What the machine costs an hour.")
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = Field(
        "USD", description="Currency of the price, three letters."
    )

    @model_validator(mode="after")
    def _a_gpu_where_one_computes(self) -> Environment:
        if (self.device == "cuda") != (self.gpu is not None):
            raise ValueError("device: cuda and gpu belong together: give both or neither")
        return self


def environment_names(folder: Path = ENVIRONMENTS) -> tuple[str, ...]:
    """The names that `find_environment` knows in a folder, sorted."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def find_environment(what: str) -> Environment:
    """Read an environment by its file, or by its name in recipes/environments.

    Raises RecipeError with every problem, UsageError (which says where it looked) where there is
    no such file.
    """
    path = Path(what)
    if path.suffix not in SUFFIXES and not path.is_file():
        path = ENVIRONMENTS / f"{what}.yaml"
        if not path.is_file():
            known = ", ".join(environment_names()) or "none there"
            raise UsageError(
                f"there is no environment {what}: neither a file of that name nor {path} is here "
                f"in {Path.cwd()}",
                f"Name a YAML file, or one of {ENVIRONMENTS}/: {known}.",
            )
    return read_document(path, Environment, "environment")
