"""Plans: the right stages, keys that change with what matters and with nothing else, refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
from guard import REPOSITORY

from deployer.errors import PlanError
from deployer.machine import Gpu
from deployer.planning import (
    STAGE_VERSIONS,
    Machine,
    Plan,
    ResolvedSource,
    Texts,
    make_plan,
    making,
)
from deployer.planning.estimate import nominal_bits
from deployer.recipe import GGUF_SCHEMES, Recipe, override_recipe, read_recipe
from deployer.toolchains.specs import SPECS, Host

HOST = Host("Linux", "x86_64", "3.11", "avx2")
MACHINE = Machine(HOST, memory_bytes=32 * 10**9)
GPU = Gpu("a GPU", 80 * 10**9, (9, 0))
TEXTS = Texts(evaluation="e" * 64, calibration="c" * 64)
BASE: Mapping[str, Any] = {
    "version": 1,
    "name": "tiny",
    "source": {"package": "some-model==1.0"},
    "quantization": {"method": "gguf", "scheme": "q4_0"},
}
IMATRIX = ("quantization.scheme=q4_k_m", "quantization.imatrix=true")
MIXED = ("quantization={method: gguf, mixed: {budget_bpw: 5.0}}",)
VLLM = ("target.engine=vllm", "quantization={method: awq, group_size: 64}")
PACKAGE = ResolvedSource("package", {"package": "some-model==1.0"}, "checkpoint")
GGUF = ResolvedSource("gguf", {"file": "m.gguf", "sha256": "a" * 64}, "gguf", False, 10**9)


def recipe(*overrides: str) -> Recipe:
    return override_recipe(BASE, overrides)


def plan(
    *overrides: str,
    source: ResolvedSource = PACKAGE,
    machine: Machine = MACHINE,
    texts: Texts = TEXTS,
) -> Plan:
    return make_plan(recipe(*overrides), source, machine, texts)


def keys(planned: Plan) -> dict[str, str]:
    return {stage.name: stage.key for stage in planned.stages}


def changed(before: Plan, after: Plan) -> set[str]:
    """The stages whose keys differ; both plans have the same ones."""
    old, new = keys(before), keys(after)
    assert old.keys() == new.keys()
    return {name for name in old if old[name] != new[name]}


# The stages


@pytest.mark.parametrize(
    ("overrides", "source", "stages"),
    [
        ((), PACKAGE, "fetch convert quantize baseline evaluate package"),
        (IMATRIX, PACKAGE, "fetch convert imatrix quantize baseline evaluate package"),
        (("quantization={method: none}",), PACKAGE, "fetch convert evaluate package"),
        ((), GGUF, "fetch quantize baseline evaluate package"),
        (("quantization={method: none}",), GGUF, "fetch evaluate package"),
        (VLLM, PACKAGE, "fetch quantize baseline evaluate package"),
        (MIXED, PACKAGE, "fetch convert sensitivity quantize baseline evaluate package"),
        (
            (*VLLM, "quantization.mixed={budget_bpw: 8.0}"),
            PACKAGE,
            "fetch gguf sensitivity quantize baseline evaluate package",
        ),
        (
            ("target.engine=vllm", "quantization={method: none}"),
            PACKAGE,
            "fetch evaluate package",
        ),
    ],
)
def test_the_stages_of_a_plan(
    overrides: tuple[str, ...], source: ResolvedSource, stages: str
) -> None:
    assert [stage.name for stage in plan(*overrides, source=source).stages] == stages.split()


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_recipe_is_planned(path: Any) -> None:
    shipped = read_recipe(path)
    source = ResolvedSource("package", {"package": "x==1"}, "checkpoint")
    planned = make_plan(shipped, source, MACHINE, TEXTS)
    assert planned.stages[-1].name == "package"
    json.dumps(planned.as_json())


def test_the_demo_needs_no_compiler() -> None:
    demo = read_recipe(REPOSITORY / "recipes" / "smollm2-q4_0.yaml")
    planned = make_plan(demo, PACKAGE, MACHINE, TEXTS)
    assert not any(SPECS[name].compiles for name in planned.toolchains)


@pytest.mark.parametrize("scheme", ["q4_k_m", "q6_k", "f32"])
def test_other_types_are_made_by_llama_quantize(scheme: str) -> None:
    stage = plan(f"quantization.scheme={scheme}").stage("quantize")
    assert stage is not None
    assert stage.toolchains == ("llama-cpp-native",)
    assert "llama-quantize" in stage.summary


def test_another_aim_of_a_mix_measures_nothing_again() -> None:
    other = plan(*MIXED, "quantization.mixed.budget_bpw=6")
    assert changed(plan(*MIXED), other) == {"quantize", "evaluate", "package"}
    longer = plan(*MIXED, "quantization.mixed.windows=4")
    assert changed(plan(*MIXED), longer) == {"sensitivity", "quantize", "evaluate", "package"}
    converted = plan().stage("convert")
    measured_on = plan(*VLLM, "quantization.mixed={budget_bpw: 8.0}").stage("gguf")
    assert converted and measured_on and converted.key == measured_on.key


def test_a_plan_is_the_same_twice_and_has_full_keys() -> None:
    assert plan() == plan()
    assert all(len(key) == 64 for key in keys(plan()).values())
    assert len(set(keys(plan()).values())) == len(plan().stages)


def test_a_plan_prints_as_json() -> None:
    document = json.loads(json.dumps(plan(*IMATRIX).as_json()))
    assert document["name"] == "tiny"
    assert document["engine"] == "llama.cpp"
    assert document["source"] == {"kind": "package", "package": "some-model==1.0"}
    assert document["toolchains"] == ["convert", "llama-cpp-native", "llama-cpp"]
    assert document["stages"][1]["settings"] == {"type": "f16", "name": "some-model"}
    assert document["recipe"]["quantization"]["imatrix"] is True
    assert "llama-quantize" in document["notes"][0]
    assert document["serve"]["argv"][0] == "serve_xllamacpp"


def test_a_plan_for_vllm_shows_its_server() -> None:
    planned = plan(*VLLM, "serve.context=4096")
    assert planned.serve[0] == "serve_vllm"
    assert "4096" in planned.serve
    assert "BUNDLE" in planned.serve
    assert "llm-compressor" in planned.notes[0]


def test_weights_of_unknown_shape_are_still_held_against_the_memory() -> None:
    small = dataclasses.replace(PACKAGE, size_bytes=10**9)
    notes = plan(*VLLM, source=small).notes
    assert any("dimensions are not known here" in note for note in notes)
    assert any("serving takes about" in note for note in notes)
    with pytest.raises(PlanError, match="serving takes about"):
        plan(*VLLM, source=dataclasses.replace(PACKAGE, size_bytes=400 * 10**9))


def test_a_model_is_scored_on_as_many_gpus_as_it_is_served_on() -> None:
    stage = plan(*VLLM, "target.device=cuda", "serve.vllm.tensor_parallel=2").stage("baseline")
    assert stage is not None
    assert stage.settings["tensor_parallel"] == 2
    assert "pipeline_parallel" not in stage.settings


def test_a_calibration_set_of_a_hub_is_a_stage_of_its_own() -> None:
    dataset = {"dataset": "a/b", "revision": "0" * 40, "file": "c.jsonl"}
    texts = dataclasses.replace(TEXTS, dataset=dataset)
    stages = [stage.name for stage in plan(*VLLM, texts=texts).stages]
    assert stages == ["fetch", "calibration", "quantize", "baseline", "evaluate", "package"]


def scored_on(file: str, revision: str = "0" * 40) -> Texts:
    dataset = {"dataset": "a/b", "revision": revision, "file": file}
    return dataclasses.replace(TEXTS, evaluation="d" * 64, evaluation_dataset=dataset)


def test_an_evaluation_text_of_a_hub_is_a_stage_before_the_scorings() -> None:
    before, after = plan(texts=scored_on("c.txt")), plan(texts=scored_on("c.txt", "1" * 40))
    names = [stage.name for stage in before.stages]
    assert names == ["evaluation-text", *(stage.name for stage in plan().stages)]
    assert changed(before, after) == {"evaluation-text", "baseline", "evaluate", "package"}
    assert "a/b" in before.stages[0].summary


@pytest.mark.parametrize(("file", "tools"), [("c.parquet", ("parquet",)), ("c.jsonl", ())])
def test_only_parquet_files_take_a_toolchain_of_their_own(
    file: str, tools: tuple[str, ...]
) -> None:
    stage = plan(texts=scored_on(file)).stage("evaluation-text")
    assert stage and stage.toolchains == tools
    dataset = {"dataset": "a/b", "revision": "0" * 40, "file": file}
    tuned = plan(*VLLM, texts=dataclasses.replace(TEXTS, dataset=dataset)).stage("quantize")
    assert tuned and tuned.toolchains == ("llm-compressor", *tools)


def test_vllm_loads_no_gguf_file() -> None:
    with pytest.raises(PlanError, match="vllm loads checkpoints"):
        plan(*VLLM, source=GGUF)


def test_a_stage_that_is_not_planned_is_none() -> None:
    assert plan().stage("imatrix") is None


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        ({"repository": "org/model", "revision": "0" * 40}, "org/model"),
        ({"package": "llm-x==1.0"}, "llm-x"),
        ({"sha256": "a" * 64}, "model"),
    ],
)
def test_the_models_name_does_not_depend_on_the_machine(
    identity: dict[str, str], name: str
) -> None:
    assert ResolvedSource("path", identity, "checkpoint").model_name == name


# The keys

WEIGHTS = {"quantize", "evaluate", "package"}
SCORES = {"baseline", "evaluate", "package"}
FIELDS = [
    ("name=other", (), {"package"}),
    ("target.device=cpu", (), {"package"}),
    ("serve.port=9000", (), {"package"}),
    ("serve.context=4096", (), {"package"}),
    ("serve.extra_args=[--no-mmap]", (), {"package"}),
    ("loadtest.users=3", (), {"package"}),
    ("loadtest.slo.ttft_p95_ms=5.0", (), {"package"}),
    ("quality.max_perplexity=50.0", (), {"package"}),
    ("quality.max_perplexity_ratio=2.0", (), {"package"}),
    ("quality.max_kl_divergence=2.0", (), {"package"}),
    ("quality.min_top1_agreement=0.9", (), {"package"}),
    ("quality.windows=3", (), SCORES),
    ("quantization.scheme=q8_0", (), WEIGHTS),
    ("quantization.tool=llama-quantize", (), WEIGHTS),
    ("quantization.tool=gguf", (), {"package"}),
    ("calibration.samples=8", (), {"package"}),
    ("calibration.samples=8", IMATRIX, {"imatrix", *WEIGHTS}),
    ("calibration.length=128", IMATRIX, {"imatrix", *WEIGHTS}),
    ("quantization.scheme=q6_k", IMATRIX, WEIGHTS),
    ("quantization.group_size=32", VLLM, WEIGHTS),
    ("quantization.tool=autoawq", VLLM, WEIGHTS),
    ("calibration.samples=8", VLLM, WEIGHTS),
    ("serve.vllm.eager=true", VLLM, {"package"}),
    ("serve.vllm.dtype=float32", VLLM, SCORES),
    ("serve.vllm.prefix_caching=false", VLLM, {"package"}),
    ("quality.windows=3", VLLM, SCORES),
]


@pytest.mark.parametrize(("override", "base", "expected"), FIELDS)
def test_a_field_changes_the_stages_it_matters_to(
    override: str, base: tuple[str, ...], expected: set[str]
) -> None:
    assert changed(plan(*base), plan(*base, override)) == expected


def test_a_changed_serve_field_rebuilds_only_the_package() -> None:
    for override in ("serve.port=1", "serve.parallel=2", "serve.server=source", "serve.threads=1"):
        assert changed(plan(), plan(override)) == {"package"}


def test_another_source_changes_everything() -> None:
    other = dataclasses.replace(PACKAGE, identity={"package": "some-model==1.1"})
    assert changed(plan(), plan(source=other)) == set(keys(plan()))


def test_the_size_of_a_source_changes_nothing() -> None:
    assert not changed(plan(), plan(source=dataclasses.replace(PACKAGE, size_bytes=5)))


@pytest.mark.parametrize(
    ("base", "field", "expected"),
    [
        ((), "evaluation", SCORES),
        ((), "calibration", set()),
        (IMATRIX, "calibration", {"imatrix", *WEIGHTS}),
        (IMATRIX, "evaluation", {"imatrix", "quantize", *SCORES}),
        (VLLM, "calibration", WEIGHTS),
        (VLLM, "evaluation", {"quantize", *SCORES}),
    ],
)
def test_a_text_changes_the_stages_that_read_it(
    base: tuple[str, ...], field: str, expected: set[str]
) -> None:
    texts = dataclasses.replace(TEXTS, **{field: "f" * 64})
    assert changed(plan(*base), plan(*base, texts=texts)) == expected


def test_another_processor_changes_only_what_is_compiled_for_it() -> None:
    other = dataclasses.replace(MACHINE, host=dataclasses.replace(HOST, cpu="avx512"))
    assert not changed(plan(), plan(machine=other))
    native = "quantization.scheme=q4_k_m"
    assert changed(plan(native), plan(native, machine=other)) == WEIGHTS


def test_more_memory_or_a_gpu_change_no_key() -> None:
    other = Machine(HOST, memory_bytes=10**12, gpus=(GPU,))
    assert not changed(plan(), plan(machine=other))


AFTER = {
    "fetch": {"fetch", "convert", "imatrix", "quantize", "baseline", "evaluate", "package"},
    "convert": {"convert", "imatrix", "quantize", "baseline", "evaluate", "package"},
    "imatrix": {"imatrix", "quantize", "evaluate", "package"},
    "quantize": {"quantize", "evaluate", "package"},
    "baseline": {"baseline", "evaluate", "package"},
    "evaluate": {"evaluate", "package"},
    "package": {"package"},
}


@pytest.mark.parametrize("stage", AFTER)
def test_new_code_of_a_stage_changes_it_and_what_follows(
    monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    before = plan(*IMATRIX)
    newer = {**STAGE_VERSIONS, stage: STAGE_VERSIONS[stage] + 1}
    monkeypatch.setattr(making, "STAGE_VERSIONS", newer)
    assert changed(before, plan(*IMATRIX)) == AFTER[stage]


def test_every_recipe_of_a_checkpoint_has_the_same_baseline() -> None:
    """Scoring the 16-bit model is done once, whichever recipe asks for it."""
    others = ("quantization.scheme=q8_0", "quality.max_perplexity=50.0", "name=other")
    assert {keys(plan(other))["baseline"] for other in others} == {keys(plan())["baseline"]}
    assert "baseline" not in keys(plan("quantization={method: none}"))


# What cannot be carried out


def test_cuda_needs_a_server_built_for_it() -> None:
    with pytest.raises(PlanError, match="built with CUDA") as caught:
        plan("target.device=cuda")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("engine", [("serve.server=llama-server",), VLLM])
def test_a_missing_gpu_is_an_obstacle_and_the_plan_is_shown(engine: tuple[str, ...]) -> None:
    planned = plan("target.device=cuda", *engine)
    (obstacle,) = planned.obstacles
    assert "no NVIDIA GPU" in obstacle.message
    assert "target.device: cpu" in obstacle.hint
    assert planned.stages[-1].name == "package"
    assert planned.serve
    gpu = dataclasses.replace(MACHINE, gpus=(GPU,))
    assert plan("target.device=cuda", *engine, machine=gpu).obstacles == ()


@pytest.mark.parametrize(
    ("gpus", "overrides", "expected"),
    [
        ((), ("serve.server=auto",), "cpu"),
        ((GPU,), ("serve.server=auto",), "cpu"),
        ((GPU,), ("serve.server=llama-server",), "cuda"),
        ((), VLLM, "cpu"),
        ((GPU,), VLLM, "cuda"),
    ],
)
def test_auto_takes_a_gpu_where_one_can_be_used(
    gpus: tuple[Gpu, ...], overrides: tuple[str, ...], expected: str
) -> None:
    machine = dataclasses.replace(MACHINE, gpus=gpus)
    assert plan(*overrides, machine=machine).device == expected


def test_quantized_weights_are_not_quantized_again() -> None:
    source = dataclasses.replace(GGUF, quantized=True)
    with pytest.raises(PlanError, match="quantized already") as caught:
        plan(source=source)
    assert "method: none" in caught.value.hint
    assert plan("quantization={method: none}", source=source).stages


def test_weights_larger_than_memory_are_refused_with_the_arithmetic() -> None:
    large = dataclasses.replace(PACKAGE, size_bytes=140 * 10**9)
    with pytest.raises(PlanError, match=r"140\.0 GB at about 4\.5 of 16 bits") as caught:
        plan(source=large)
    assert "weights 39.4 GB" in caught.value.message
    assert "there are 32.0 GB" in caught.value.message
    assert "fewer bits" in caught.value.hint
    assert plan("quantization.scheme=q2_k", source=large).stages


def test_a_quantized_file_is_not_made_smaller_on_paper() -> None:
    large = dataclasses.replace(GGUF, quantized=True, size_bytes=40 * 10**9)
    with pytest.raises(PlanError, match=r"40\.0 GB"):
        plan("quantization={method: none}", source=large)


@pytest.mark.parametrize("scheme", GGUF_SCHEMES)
def test_every_scheme_has_an_estimate_of_its_bits(scheme: str) -> None:
    assert 1 <= nominal_bits(scheme) <= 32


@pytest.mark.parametrize(
    ("scheme", "bits"), [("q4_0", 4.5), ("q8_0", 8.5), ("f16", 16), ("bf16", 16), ("iq2_xs", 2.5)]
)
def test_estimates_are_near(scheme: str, bits: float) -> None:
    assert nominal_bits(scheme) == bits
