"""Recipe -> `Plan`: the stages an engine needs, each with its key.

A stage's key is a digest of all that decides its output: the keys of its inputs, the recipe
fields that matter to it, the texts it reads, the toolchains that run it, and the version of its
own code. So an unchanged stage is found again, and a changed serve field rebuilds no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployer import __version__
from deployer.artifacts import json_digest
from deployer.engines import engine_named
from deployer.planning.checks import check, check_shape, device, obstacles
from deployer.planning.mixing import measured_types
from deployer.planning.plan import Machine, Plan, PlannedStage, ResolvedSource, Texts
from deployer.planning.serving import server_command
from deployer.quantizers import choose_quantizer
from deployer.recipe import Mixed, Recipe, Transformers, Vllm
from deployer.toolchains.specs import Host, spec_named

STAGE_VERSIONS = {
    "evaluation-text": 1, "fetch": 2, "convert": 3, "calibration": 1, "imatrix": 1,
    "sensitivity": 1, "quantize": 1, "baseline": 2, "evaluate": 2, "package": 3,
}  # fmt: skip
"""Raised when a stage's code changes what it makes."""
CONVERSION_TYPE = "f16"


def make_plan(recipe: Recipe, source: ResolvedSource, machine: Machine, texts: Texts) -> Plan:
    """Plan a build; raises PlanError where the recipe cannot be carried out on any machine."""
    check(recipe, source)
    notes = check_shape(recipe, source.shape, machine, source.size_bytes)
    where = device(recipe, machine)
    planner = _Planner(recipe, machine.host, where, texts)
    text = planner.evaluation_text()
    fetch = planner.fetch(source)
    baseline = planner.convert(fetch, source) if planner.converts(source) else fetch
    weights = planner.quantize(baseline, source.model_name)
    scores = planner.evaluate(baseline, weights, text, source)
    planner.package(weights, scores)
    argv, env = server_command(recipe, source.shape, where, machine.facts)
    return Plan(
        recipe,
        source,
        where,
        tuple(planner.stages),
        (*planner.notes, *notes),
        obstacles(recipe, machine),
        argv,
        env,
    )


def fetch_key(recipe: Recipe, source: ResolvedSource, host: Host) -> str:
    """The key of a source's fetch stage: it decides whether the source is there already."""
    return _Planner(recipe, host, "cpu", Texts("", "")).fetch(source).key


class _Planner:
    """Collects stages, and sentences that explain them; each method adds one and returns it."""

    def __init__(self, recipe: Recipe, host: Host, device: str, texts: Texts) -> None:
        self.recipe = recipe
        self.host = host
        self.device = device
        self.texts = texts
        self.engine = engine_named(recipe.target.engine)
        self.stages: list[PlannedStage] = []
        self.notes: list[str] = []

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

    def evaluation_text(self) -> tuple[PlannedStage, ...]:
        """The stage that fetches the evaluation text, where it lies on a hub."""
        pinned = self.texts.evaluation_dataset
        if pinned is None:
            return ()
        summary = f"get {pinned['file']} of the data set {pinned['dataset']}, to score"
        return (self.add("evaluation-text", summary, (), _readers(pinned["file"]), pinned),)

    def converts(self, source: ResolvedSource) -> bool:
        """Whether the source must become a GGUF file first."""
        return self.engine.format == "gguf" and source.format == "checkpoint"

    def convert(self, fetch: PlannedStage, source: ResolvedSource) -> PlannedStage:
        return self.add(
            "convert",
            f"convert to an {CONVERSION_TYPE} GGUF",
            (fetch,),
            ("convert",),
            {"type": CONVERSION_TYPE, "name": source.model_name},
        )

    def quantize(self, source: PlannedStage, model_name: str) -> PlannedStage:
        """The stage that makes the weights smaller; `source` itself where none is needed."""
        wanted = self.recipe.quantization
        if wanted.method == "none" or wanted.while_loading:
            return source
        choice = choose_quantizer(wanted, self.device)
        tool = choice.quantizer.tool
        self.notes.append(f"{wanted.label} is made by {tool}: {choice.why}")
        settings: dict[str, Any] = {"scheme": wanted.scheme, "tool": tool}
        calibration = self.calibration() if wanted.reads_calibration else ()
        inputs: tuple[PlannedStage, ...] = (source,)
        tuned = ""
        readers: tuple[str, ...] = ()
        if wanted.imatrix:
            inputs = (source, self.imatrix(source, calibration))
            tuned = ", rounding errors weighed by the importance matrix"
        if wanted.calibrated:
            inputs = (source, *calibration)
            settings |= {
                "method": wanted.method,
                "device": self.device,
                **wanted.knobs,
                **self._calibration_settings(),
            }
            tuned = f", tuned on {self._samples()}"
            readers = self._calibration_readers()
        if wanted.mixed:
            inputs = (*inputs, self.sensitivity(wanted.mixed, inputs, model_name))
            aim = {"budget_bpw", "max_kl_divergence"}
            settings["mixed"] = wanted.mixed.model_dump(mode="json", include=aim)
        return self.add(
            "quantize",
            f"quantize to {wanted.method} {wanted.label} with {tool}{tuned}"
            if wanted.calibrated
            else f"quantize to {wanted.label} with {tool}{tuned}",
            inputs,
            (choice.quantizer.toolchain(self.device), *readers),
            settings,
        )

    def sensitivity(
        self, mixed: Mixed, inputs: tuple[PlannedStage, ...], model_name: str
    ) -> PlannedStage:
        """The stage that measures what rounding each part costs, in llama.cpp for every engine."""
        model, *rest = inputs
        if self.engine.format != "gguf":
            model = self.add(
                "gguf",
                f"convert to an {CONVERSION_TYPE} GGUF, to measure on",
                (model,),
                ("convert",),
                {"type": CONVERSION_TYPE, "name": model_name},
                version_of="convert",
            )
        settings = measured_types(self.recipe.quantization) | {
            "window": mixed.WINDOW,
            "windows": mixed.windows,
            "text": self.texts.calibration,
            "evaluation_text": self.texts.evaluation,
        }
        over = f"{settings['windows']} x {settings['window']} tokens"
        return self.add(
            "sensitivity",
            f"what rounding each part to {', '.join(settings['types'])} costs, over {over}",
            (model, *rest),
            ("llama-cpp",),
            settings,
        )

    def _samples(self) -> str:
        calibration = self.recipe.calibration
        return f"{calibration.samples} x {calibration.length} tokens"

    def _calibration_settings(self) -> dict[str, Any]:
        return {
            "text": self.texts.calibration,
            "evaluation_text": self.texts.evaluation,
            "samples": self.recipe.calibration.samples,
            "length": self.recipe.calibration.length,
        }

    def calibration(self) -> tuple[PlannedStage, ...]:
        """The stage that fetches the calibration set, where it lies on a hub."""
        pinned = self.texts.dataset
        if pinned is None:
            return ()
        summary = f"get {pinned['file']} of the data set {pinned['dataset']}"
        return (self.add("calibration", summary, settings=pinned),)

    def _calibration_readers(self) -> tuple[str, ...]:
        """Toolchains that the set is compared with the evaluation text in."""
        pinned = self.texts.dataset
        return _readers(pinned["file"] if pinned else self.recipe.calibration.chats or "")

    def imatrix(self, source: PlannedStage, calibration: tuple[PlannedStage, ...]) -> PlannedStage:
        return self.add(
            "imatrix",
            f"importance matrix from {self._samples()}",
            (source, *calibration),
            ("llama-cpp-native",),
            self._calibration_settings(),
        )

    def evaluate(
        self,
        baseline: PlannedStage,
        weights: PlannedStage,
        text: tuple[PlannedStage, ...],
        source: ResolvedSource,
    ) -> tuple[PlannedStage, ...]:
        """Score the weights and, where they differ from it, the 16-bit model on the same text.

        The 16-bit model's distributions are kept for others to be compared with. Of a converted
        model the engine is also asked how it tokenizes and prompts.
        """
        quality, wanted = self.recipe.quality, self.recipe.quantization
        length, count = quality.rule
        settings: dict[str, Any] = {
            "text": self.texts.evaluation, "window": length, "windows": count, **self._as_served(),
        }  # fmt: skip
        scoring = self.engine.scoring(self.device)
        over = f"over {count or 'all'} windows of {length:,} tokens"
        asked: dict[str, Any] = {}
        if wanted.while_loading:
            asked["load"] = wanted.scheme if self.engine.name == "vllm" else wanted.load
            label = f"{wanted.method} {wanted.scheme}"
            self.notes.append(f"{label} is made by the engine, each time it loads the weights")
        scored: list[PlannedStage] = []
        if baseline is not weights or asked:
            scored.append(
                self.add(
                    "baseline",
                    f"score the 16-bit model {over}",
                    (baseline, *text),
                    (scoring.toolchain,),
                    {**settings, "keep": True},
                )
            )
        if self.converts(source):
            asked["parity"] = True
            over += "; tokenizer and chat template compared with the checkpoint's"
        scored.append(
            self.add(
                "evaluate",
                f"score the finished weights {over}",
                (weights, *scored, *text),
                (scoring.toolchain,),
                {**settings, **asked},
            )
        )
        return tuple(scored)

    def _as_served(self) -> dict[str, Any]:
        """What of the engine's settings scores depend on, or needs the GPUs that serving needs."""
        if self.engine.name == "transformers":
            dtype = self.recipe.serve.transformers.dtype
            return {} if dtype == Transformers().dtype else {"dtype": dtype}
        names = ("dtype", "tensor_parallel", "pipeline_parallel")
        served, default = self.recipe.serve.vllm, Vllm()
        return {
            name: getattr(served, name)
            for name in names
            if getattr(served, name) != getattr(default, name)
        }

    def package(self, weights: PlannedStage, scores: tuple[PlannedStage, ...]) -> PlannedStage:
        quality = self.recipe.quality
        limits = [f"perplexity <= {quality.max_perplexity:g}"]
        if len(scores) > 1:
            limits += [
                f"<= {quality.max_perplexity_ratio:g} x the 16-bit model's",
                f"KL divergence <= {quality.max_kl_divergence:g}",
                f"top-1 agreement >= {quality.min_top1_agreement:g}",
            ]
        return self.add(
            "package",
            f"make the bundle if {', '.join(limits)}",
            (weights, *scores),
            (),
            {"recipe": self.recipe.model_dump(mode="json"), "deployer": __version__},
        )


def _readers(file: str) -> tuple[str, ...]:
    """Toolchains that reading a data set's file takes."""
    return ("parquet",) if file.lower().endswith(".parquet") else ()
