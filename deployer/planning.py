"""Recipe -> frozen `Plan`: what will be done, in which order, with which key. Pure.

A stage's key is a digest of all that decides its output: the keys of its inputs, the recipe
fields that matter to it, the texts it reads, the toolchains that run it, and the version of its
own code. So an unchanged stage is found again, and a changed serve field rebuilds no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deployer import __version__
from deployer.artifacts import json_digest
from deployer.errors import PlanError
from deployer.quantizers import choose_quantizer
from deployer.recipe import Recipe
from deployer.toolchains.specs import Host, spec_named

STAGE_VERSIONS = {
    "fetch": 1, "convert": 1, "imatrix": 1, "quantize": 1, "baseline": 1, "evaluate": 1,
    "package": 1,
}  # fmt: skip
"""Raised when a stage's code changes what it makes."""
CONVERSION_TYPE = "f16"


@dataclass(frozen=True)
class Machine:
    """What of a machine decides a plan."""

    host: Host
    has_gpu: bool
    memory_bytes: int


@dataclass(frozen=True)
class ResolvedSource:
    """A source, pinned: `identity` alone decides what is fetched.

    `format` is "checkpoint" or "gguf"; `quantized` tells whether a GGUF source has fewer than 16
    bits a weight already; `size_bytes` is None where it is not known before the download.
    """

    kind: str
    identity: Mapping[str, str]
    format: str
    quantized: bool = False
    size_bytes: int | None = None
    toolchains: tuple[str, ...] = ()

    @property
    def model_name(self) -> str:
        """What the model is called in the converted file: the same on every machine."""
        named = self.identity.get("repository") or self.identity.get("package")
        return named.split("==")[0] if named else "model"


@dataclass(frozen=True)
class Texts:
    """SHA-256 of the two texts that a build reads."""

    evaluation: str
    calibration: str


@dataclass(frozen=True)
class PlannedStage:
    """One stage: what it does in words, its key, the toolchains it enters, its settings."""

    name: str
    summary: str
    key: str
    toolchains: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a build will do; printing it does nothing."""

    recipe: Recipe
    source: ResolvedSource
    device: str
    stages: tuple[PlannedStage, ...]

    def stage(self, name: str) -> PlannedStage | None:
        """The stage of that name, None where this plan has none."""
        return next((stage for stage in self.stages if stage.name == name), None)

    @property
    def toolchains(self) -> tuple[str, ...]:
        """Every toolchain the build may enter, in order of first use."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.toolchains))

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.recipe.name,
            "engine": self.recipe.target.engine,
            "device": self.device,
            "source": {"kind": self.source.kind, **self.source.identity},
            "toolchains": list(self.toolchains),
            "stages": [
                {
                    "name": stage.name,
                    "summary": stage.summary,
                    "key": stage.key,
                    "toolchains": list(stage.toolchains),
                    "settings": dict(stage.settings),
                }
                for stage in self.stages
            ],
            "recipe": self.recipe.model_dump(mode="json"),
        }


def make_plan(recipe: Recipe, source: ResolvedSource, machine: Machine, texts: Texts) -> Plan:
    """Plan a build; raises PlanError where the recipe cannot be carried out on this machine."""
    _check(recipe, source, machine)
    planner = _Planner(recipe, machine.host)
    fetch = planner.fetch(source)
    baseline = weights = fetch
    if source.format == "checkpoint":
        baseline = weights = planner.convert(fetch, source)
    if recipe.quantization.method != "none":
        weights = planner.quantize(baseline, texts)
    scores = planner.evaluate(baseline, weights, texts)
    planner.package(weights, scores)
    return Plan(recipe, source, device(recipe, machine), tuple(planner.stages))


def device(recipe: Recipe, machine: Machine) -> str:
    """Where the engine computes: the recipe's word, or what `auto` means here."""
    if recipe.target.device != "auto":
        return recipe.target.device
    return "cuda" if machine.has_gpu and recipe.serve.server == "llama-server" else "cpu"


def _check(recipe: Recipe, source: ResolvedSource, machine: Machine) -> None:
    if recipe.target.device == "cuda" and recipe.serve.server != "llama-server":
        raise PlanError(
            "device cuda needs a llama-server that was built with CUDA",
            "Install one and set serve.server: llama-server, or set target.device: cpu.",
        )
    if recipe.target.device == "cuda" and not machine.has_gpu:
        raise PlanError(
            "device is cuda, and this machine shows no NVIDIA GPU", "Set target.device: cpu."
        )
    if source.quantized and recipe.quantization.method != "none":
        raise PlanError(
            "the source is quantized already; quantizing it again would add one error to another",
            "Set quantization.method: none to serve it as it is, or start from 16-bit weights.",
        )
    _check_memory(recipe, source, machine)


def _check_memory(recipe: Recipe, source: ResolvedSource, machine: Machine) -> None:
    """Refuse weights that the machine cannot hold; the KV cache is checked when it serves."""
    if source.size_bytes is None:
        return
    scheme = recipe.quantization.scheme
    bits = 16.0 if scheme is None or source.quantized else nominal_bits(scheme)
    needed = source.size_bytes * (bits / 16 if not source.quantized else 1)
    if needed > machine.memory_bytes:
        raise PlanError(
            f"{source.size_bytes / 1e9:.1f} GB of weights at about {bits:g} of 16 bits take "
            f"{needed / 1e9:.1f} GB, and this machine has {machine.memory_bytes / 1e9:.1f} GB of "
            "memory",
            "Choose a scheme with fewer bits, or build on a larger machine and copy the bundle.",
        )


def nominal_bits(scheme: str) -> float:
    """About how many bits a weight takes in a llama.cpp type: its digit, and half a bit of scale.

    For estimates before a build only; a bundle has its measured bits per weight.
    """
    digits = "".join(character for character in scheme.split("_")[0] if character.isdigit())
    width = float(digits or 16)
    return width if width >= 16 else width + 0.5


class _Planner:
    """Collects stages; each method adds one and returns it."""

    def __init__(self, recipe: Recipe, host: Host) -> None:
        self.recipe = recipe
        self.host = host
        self.stages: list[PlannedStage] = []

    def add(
        self,
        name: str,
        summary: str,
        inputs: tuple[PlannedStage, ...] = (),
        toolchains: tuple[str, ...] = (),
        settings: Mapping[str, Any] | None = None,
        version_of: str | None = None,
    ) -> PlannedStage:
        """Add a stage. Stages that run the same code share `version_of`, and so their keys."""
        code = version_of or name
        key = json_digest(
            {
                "stage": code,
                "version": STAGE_VERSIONS[code],
                "inputs": [stage.key for stage in inputs],
                "toolchains": [spec_named(tool).key(self.host) for tool in toolchains],
                "settings": dict(settings or {}),
            }
        )
        stage = PlannedStage(name, summary, key, toolchains, settings or {})
        self.stages.append(stage)
        return stage

    def fetch(self, source: ResolvedSource) -> PlannedStage:
        what = ", ".join(source.identity.values())
        return self.add(
            "fetch",
            f"get the {source.format} from {source.kind} {what}",
            toolchains=source.toolchains,
            settings={"kind": source.kind, **source.identity},
        )

    def convert(self, fetch: PlannedStage, source: ResolvedSource) -> PlannedStage:
        return self.add(
            "convert",
            f"convert to an {CONVERSION_TYPE} GGUF; compare tokens and chat template",
            (fetch,),
            ("convert", "llama-cpp"),
            {"type": CONVERSION_TYPE, "name": source.model_name},
        )

    def quantize(self, source: PlannedStage, texts: Texts) -> PlannedStage:
        wanted = self.recipe.quantization
        quantizer = choose_quantizer(wanted)
        inputs = (source, self.imatrix(source, texts)) if wanted.imatrix else (source,)
        weighed = ", rounding errors weighed by the importance matrix" if wanted.imatrix else ""
        return self.add(
            "quantize",
            f"quantize to {wanted.scheme} with {quantizer.tool}{weighed}",
            inputs,
            (quantizer.toolchain,),
            {"scheme": wanted.scheme, "tool": quantizer.tool},
        )

    def imatrix(self, source: PlannedStage, texts: Texts) -> PlannedStage:
        calibration = self.recipe.calibration
        return self.add(
            "imatrix",
            f"importance matrix from {calibration.samples} x {calibration.length} tokens",
            (source,),
            ("llama-cpp-native",),
            {
                "text": texts.calibration,
                "evaluation_text": texts.evaluation,
                "samples": calibration.samples,
                "length": calibration.length,
            },
        )

    def evaluate(
        self, baseline: PlannedStage, weights: PlannedStage, texts: Texts
    ) -> tuple[PlannedStage, ...]:
        """Score the weights and, where they differ from it, the 16-bit model on the same text."""
        settings = {"text": texts.evaluation, "tokens": self.recipe.quality.tokens}
        tokens = f"{self.recipe.quality.tokens} tokens"
        scored: list[PlannedStage] = []
        if baseline is not weights:
            scored.append(
                self.add(
                    "baseline",
                    f"perplexity of the 16-bit model over {tokens}",
                    (baseline,),
                    ("llama-cpp",),
                    settings,
                    version_of="evaluate",
                )
            )
        scored.append(
            self.add(
                "evaluate",
                f"perplexity of the finished weights over {tokens}",
                (weights,),
                ("llama-cpp",),
                settings,
            )
        )
        return tuple(scored)

    def package(self, weights: PlannedStage, scores: tuple[PlannedStage, ...]) -> PlannedStage:
        quality = self.recipe.quality
        compared = f" and <= {quality.max_perplexity_ratio:g} x the 16-bit model's"
        return self.add(
            "package",
            f"make the bundle if perplexity <= {quality.max_perplexity:g}"
            + (compared if len(scores) > 1 else ""),
            (weights, *scores),
            (),
            {"recipe": self.recipe.model_dump(mode="json"), "deployer": __version__},
        )
