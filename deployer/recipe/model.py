"""What a recipe may say: strict, immutable models, one class a section.

Field descriptions are what `deployer schema` and docs/recipe.md show.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SOURCES = ("huggingface", "path", "gguf", "package")
PATH_FIELDS = (
    ("source", "path"),
    ("source", "gguf"),
    ("calibration", "text"),
    ("quality", "text"),
    ("serve", "api_key_file"),
)
"""Fields that name a file or folder; relative ones are relative to the recipe."""

GGUF_SCHEMES = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s",
    "q4_1", "q4_0", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "q2_k_s", "iq4_nl", "iq4_xs", "iq3_m",
    "iq3_s", "iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s",
    "q2_0", "q1_0", "tq1_0", "tq2_0", "mxfp4_moe",
)  # fmt: skip
NEED_IMATRIX = frozenset(
    {"iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "q2_k_s"}
)
"""Types llama-quantize refuses to make without an importance matrix."""

Text = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f-][^\x00-\x1f]*$")]
Positive = Annotated[int, Field(gt=0)]
Millis = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the recipe: immutable, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Source(Section):
    """Where the model comes from: exactly one of the four."""

    huggingface: Annotated[
        str | None, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=200)
    ] = Field(None, description="A Hugging Face repository, ORGANISATION/NAME.")
    revision: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][\w./-]*$", max_length=200)] = (
        Field(
            None,
            description="Commit, tag or branch of the repository. A 40-digit commit is fetched as "
            "it is; anything else is resolved to a commit first, and the commit is recorded.",
        )
    )
    path: Text | None = Field(
        None, description="A folder with a checkpoint (config.json and *.safetensors)."
    )
    gguf: Text | None = Field(None, description="A GGUF file.")
    package: Annotated[
        str | None, Field(pattern=r"^[A-Za-z0-9][\w.-]*==[A-Za-z0-9][\w.+!-]*$", max_length=200)
    ] = Field(None, description="A Python package that carries a GGUF model, NAME==VERSION.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Source:
        given = [name for name in SOURCES if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of huggingface, path, gguf, package"
                + (f" (found {', '.join(given)})" if given else "")
            )
        if self.revision and not self.huggingface:
            raise ValueError("revision belongs to huggingface sources only")
        return self


class Target(Section):
    """What the model is built for."""

    engine: Literal["llama.cpp"] = Field("llama.cpp", description="The inference engine.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the engine computes; auto takes a GPU where there is one."
    )


class Quantization(Section):
    """How the weights are made smaller."""

    method: Literal["gguf", "none"] = Field(
        "gguf", description="gguf: a llama.cpp type, named by scheme. none: 16-bit weights (f16)."
    )
    scheme: Literal[GGUF_SCHEMES] | None = Field(  # type: ignore[valid-type]
        None, description="The llama.cpp type, for example q4_0, q8_0 or q4_k_m."
    )
    tool: Literal["auto", "gguf", "llama-quantize"] = Field(
        "auto",
        description="auto: the gguf package for q4_0 and q8_0, which needs no compiler; "
        "llama-quantize, built once from the pinned source, for all else.",
    )
    imatrix: bool = Field(
        False, description="Weigh rounding errors by an importance matrix of the calibration text."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Quantization:
        if self.method == "none":
            if self.scheme is not None or self.imatrix or self.tool != "auto":
                raise ValueError("method none takes no scheme, tool or imatrix")
            return self
        if self.scheme is None:
            raise ValueError("scheme is missing, for example q4_0")
        if self.imatrix and self.tool == "gguf":
            raise ValueError("the gguf tool cannot use an importance matrix; use llama-quantize")
        if self.tool == "gguf" and self.scheme not in ("q4_0", "q8_0"):
            raise ValueError(f"the gguf tool makes q4_0 and q8_0, not {self.scheme}")
        if self.scheme in NEED_IMATRIX and not self.imatrix:
            raise ValueError(f"{self.scheme} needs an importance matrix: set imatrix: true")
        return self


class Calibration(Section):
    """The text that tells the quantizer which weights matter; never the evaluation text."""

    text: Text | None = Field(None, description="A UTF-8 text file; default: the one that ships.")
    samples: Positive = Field(32, description="Number of chunks that are used.")
    length: Annotated[int, Field(ge=64, le=131072)] = Field(512, description="Tokens per chunk.")


class Quality(Section):
    """The gate: a model beyond one of these limits is not packaged."""

    text: Text | None = Field(None, description="A UTF-8 text file; default: the one that ships.")
    tokens: Annotated[int, Field(ge=64, le=8192)] = Field(
        256, description="Number of tokens of the text that are scored."
    )
    max_perplexity_ratio: Annotated[float, Field(gt=1.0, le=100.0)] = Field(
        1.5, description="Limit of perplexity / perplexity of the 16-bit model, same text."
    )
    max_perplexity: Annotated[float, Field(gt=1.0, le=10_000.0)] = Field(
        200.0, description="Limit of the perplexity itself; garbage is far above it."
    )


class Serve(Section):
    """How the bundle is served."""

    server: Literal["auto", "llama-server", "source", "xllamacpp", "llama-cpp-python"] = Field(
        "auto",
        description="llama-server: an installed one. source: built once from the pinned release. "
        "xllamacpp: the same native server from a prebuilt wheel. llama-cpp-python: the Python "
        "server, one request at a time. auto never takes one that must be compiled first.",
    )
    host: Annotated[str, Field(pattern=r"^[0-9A-Za-z:][0-9A-Za-z.:-]*$", max_length=253)] = Field(
        "127.0.0.1", description="Address to listen on; other than loopback needs api_key_file."
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        8080, description="TCP port; 0 takes a free one."
    )
    context: Annotated[int, Field(ge=64, le=10_000_000)] = Field(
        2048, description="Tokens a request may use, prompt and output together."
    )
    parallel: Annotated[int, Field(ge=1, le=1024)] = Field(
        8, description="Slots: requests that are decoded at the same time."
    )
    threads: Positive | None = Field(
        None, description="CPU threads; default: the physical cores this process may use."
    )
    api_key_file: Text | None = Field(
        None, description="File with one API key a line; relative to the recipe."
    )
    ready_timeout: Annotated[int, Field(ge=1, le=86_400)] = Field(
        600, description="Seconds until the first token must have come."
    )
    drain_timeout: Annotated[int, Field(ge=0, le=86_400)] = Field(
        30, description="Seconds that running requests get to finish after SIGTERM."
    )
    extra_args: tuple[Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$")], ...] = Field(
        (), description="Further arguments, handed to the server as they are."
    )


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

    profile: Literal["smoke", "concurrent"] = Field(
        "smoke", description="smoke: a few requests, one user. concurrent: a closed loop of users."
    )
    users: Annotated[int, Field(ge=1, le=10_000)] = Field(8, description="Concurrent users.")
    duration: Annotated[int, Field(ge=1, le=86_400)] = Field(
        20, description="Measured seconds, after the warm-up."
    )
    warmup: Annotated[int, Field(ge=0, le=3600)] = Field(3, description="Seconds left out.")
    prompt_tokens: Annotated[int, Field(ge=8, le=1_000_000)] = Field(
        64, description="Length of the prompts, in tokens, about."
    )
    output_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        64, description="max_tokens of each request."
    )
    slo: Slo = Field(default_factory=Slo)


class Recipe(Section):
    """What to build from which model for which engine, and how to serve and test it."""

    version: Literal[1] = Field(description="Version of the recipe format.")
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)] = Field(
        description="Name of the bundle and of the served model."
    )
    source: Source
    target: Target = Field(default_factory=Target)
    quantization: Quantization
    calibration: Calibration = Field(default_factory=Calibration)
    quality: Quality = Field(default_factory=Quality)
    serve: Serve = Field(default_factory=Serve)
    loadtest: LoadTest = Field(default_factory=LoadTest)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "deployer recipe",
        **Recipe.model_json_schema(),
    }
