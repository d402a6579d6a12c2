"""What a recipe may say: strict, immutable models, one class a section.

Field descriptions are what `deployer schema` and docs/recipe.md show.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from deployer.recipe.loadtest import LoadTest
from deployer.recipe.loadtest import Slo as Slo
from deployer.recipe.quality import Quality
from deployer.recipe.quantization import Calibration, Quantization
from deployer.recipe.section import Repository, Revision, Section, Text
from deployer.recipe.serve import SERVERS, Serve, Transformers, Vllm

SOURCES = ("huggingface", "path", "gguf", "package")
METHODS = {
    "llama.cpp": ("gguf", "none"),
    "vllm": ("awq", "gptq", "bitsandbytes", "none"),
    "transformers": ("bitsandbytes", "quanto", "hqq", "torchao", "none"),
}
"""Engine -> the quantization methods whose weights it loads."""
PATH_FIELDS = (
    ("source", "path"),
    ("source", "gguf"),
    ("calibration", "text"),
    ("calibration", "chats"),
    ("quality", "text"),
    ("serve", "api_key_file"),
    ("loadtest", "chats"),
    ("loadtest", "trace"),
)
"""Fields that name a file or folder; relative ones are relative to the recipe."""
ALTERNATIVES = {
    "calibration": ("text", "chats", "dataset"),
    "quality": ("text", "dataset"),
}
"""Section -> the fields of which one names its text; `revision` and `file` belong to `dataset`."""
TEXTS = ("en", "zh")
"""Languages of the texts that ship; `calibration.text` and `quality.text` may name one."""


class Source(Section):
    """Where the model comes from: exactly one of the four."""

    huggingface: Repository | None = Field(
        None, description="A Hugging Face repository, ORGANISATION/NAME."
    )
    revision: Revision | None = Field(
        None,
        description="Commit, tag or branch of the repository. A 40-digit commit is fetched as "
        "it is; anything else is resolved to a commit first, and the commit is recorded.",
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

    engine: Literal["llama.cpp", "vllm", "transformers"] = Field(
        "llama.cpp",
        description="The inference engine: llama.cpp serves GGUF files, vllm and transformers "
        "checkpoints.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the engine computes; auto takes a GPU where there is one."
    )


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

    @model_validator(mode="after")
    def _one_engine(self) -> Recipe:
        """What is set fits the engine; every problem is told at once."""
        engine, method = self.target.engine, self.quantization.method
        problems = []
        if method not in METHODS[engine]:
            fit = " or ".join(name for name, methods in METHODS.items() if method in methods)
            problems.append(f"quantization.method {method} needs target.engine {fit}, not {engine}")
        if self.serve.server not in SERVERS[engine]:
            known = ", ".join(SERVERS[engine])
            problems.append(
                f"engine {engine} has no serve.server {self.serve.server}; known: {known}"
            )
        if engine != "vllm" and self.serve.vllm != Vllm():
            problems.append(f"serve.vllm needs target.engine vllm, not {engine}")
        if engine != "transformers" and self.serve.transformers != Transformers():
            problems.append(f"serve.transformers needs target.engine transformers, not {engine}")
        if engine != "transformers" and self.quantization.double_quant:
            problems.append("quantization.double_quant needs target.engine transformers")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "deployer recipe",
        **Recipe.model_json_schema(),
    }
