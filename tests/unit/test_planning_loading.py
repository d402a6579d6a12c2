"""Plans for the engine transformers: what it quantizes while it loads, its keys and its memory."""

from __future__ import annotations

from typing import Any

import pytest
from model_shapes import LLAMA_8B, SMOLLM2, shape

from deployer.errors import PlanError, RecipeError
from deployer.machine import Gpu
from deployer.planning import Machine, ModelShape, Plan, ResolvedSource, Texts, make_plan
from deployer.planning.building_memory import building_memory
from deployer.planning.estimate import bits_per_weight
from deployer.planning.loading import LOADING, Loading, check_loading
from deployer.planning.serving_memory import serving_hint, serving_memory
from deployer.recipe import Quantization, Recipe, override_recipe
from deployer.recipe.model import METHODS
from deployer.recipe.quantization import SCHEMES
from deployer.toolchains.specs import Host

HOST = Host("Linux", "x86_64", "3.11", "avx2")
MACHINE = Machine(HOST, 32 * 10**9)
BASE: dict[str, Any] = {
    "version": 1,
    "name": "tiny",
    "source": {"package": "some-model==1.0"},
    "target": {"engine": "transformers"},
    "quantization": {"method": "bitsandbytes", "scheme": "nf4"},
}
PLAIN = "quantization={method: none}"
SMALL, LARGE = shape(SMOLLM2), shape(LLAMA_8B)


def recipe(*overrides: str) -> Recipe:
    return override_recipe(BASE, overrides)


def plan(*overrides: str, known: ModelShape | None = None) -> Plan:
    source = ResolvedSource("package", {"package": "m==1"}, "checkpoint", shape=known)
    return make_plan(recipe(*overrides), source, MACHINE, Texts("e" * 64, "c" * 64))


def keys(planned: Plan) -> dict[str, str]:
    return {stage.name: stage.key for stage in planned.stages}


def test_nothing_is_quantized_before_it_is_loaded() -> None:
    planned = plan("quantization.double_quant=true")
    assert list(keys(planned)) == ["fetch", "baseline", "evaluate", "package"]
    evaluate = planned.stage("evaluate")
    assert evaluate is not None
    assert evaluate.toolchains == ("transformers",)
    assert evaluate.settings["load"] == {
        "method": "bitsandbytes", "scheme": "nf4", "double_quant": True,
    }  # fmt: skip
    assert "made by the engine, each time it loads" in planned.notes[0]
    assert planned.serve[0] == "serve_transformers"


def test_sixteen_bit_weights_are_scored_once() -> None:
    assert list(keys(plan(PLAIN))) == ["fetch", "evaluate", "package"]


def test_every_format_is_compared_with_the_same_baseline() -> None:
    """Only what decides the quantized scores has another key."""
    first = keys(plan())
    for other in (
        "quantization.double_quant=true",
        "quantization={method: hqq, scheme: int4}",
        "quantization={method: quanto, scheme: int8}",
    ):
        second = keys(plan(other))
        assert {name for name in first if first[name] != second[name]} == {"evaluate", "package"}
    wide = keys(plan("serve.transformers.dtype=float32"))
    assert {n for n in first if first[n] != wide[n]} == {"baseline", "evaluate", "package"}
    assert plan("serve.context=512").stage("evaluate") == plan().stage("evaluate")


def test_every_scheme_has_its_place_in_the_table() -> None:
    schemes = {(method, scheme) for method in METHODS["transformers"] for scheme in SCHEMES[method]}
    assert set(LOADING) == schemes | {("none", None)}


def test_what_does_not_run_on_a_device_is_refused_with_what_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LOADING, ("hqq", "int2"), Loading(cpu="it has no kernel"))
    wanted = recipe("quantization={method: hqq, scheme: int2}")
    with pytest.raises(PlanError, match="hqq int2 does not run on a CPU: it has no kernel") as told:
        check_loading(wanted, "cpu")
    assert "bitsandbytes nf4" in told.value.hint
    assert "hqq int2" not in told.value.hint
    check_loading(wanted, "cuda")
    check_loading(recipe("target.engine=vllm"), "cpu")


def test_quanto_needs_a_compiler_on_a_gpu() -> None:
    with pytest.raises(PlanError, match=r"quanto float8 does not run on a GPU: .* nvcc"):
        check_loading(recipe("quantization={method: quanto, scheme: float8}"), "cuda")
    check_loading(recipe("quantization={method: quanto, scheme: float8}"), "cpu")


def test_groups_must_divide_the_widths() -> None:
    plan("quantization={method: hqq, scheme: int4, group_size: 64}", known=SMALL)
    with pytest.raises(PlanError, match="group_size 128 does not divide the 576 inputs") as told:
        plan("quantization={method: hqq, scheme: int4, group_size: 128}", known=SMALL)
    assert "group_size=64" in told.value.hint
    plan("quantization={method: torchao, scheme: int8}", known=SMALL)


def test_the_context_must_fit_the_model() -> None:
    with pytest.raises(PlanError, match=r"serve\.context"):
        plan("serve.context=1000000", known=SMALL)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("target.engine=vllm", "quantization.double_quant=true"), "needs target.engine"),
        (("quantization={method: bitsandbytes, scheme: int8, double_quant: true}",), "nf4"),
        (("quantization={method: hqq, scheme: int4, group_size: -1}",), "needs groups"),
        (("quantization={method: quanto, scheme: int8, group_size: 64}",), "has no group_size"),
        (("quantization={method: torchao}",), "scheme is missing: int8 or int4"),
        (("target.engine=vllm", "quantization={method: hqq, scheme: int4}"), "transformers"),
        (("target.engine=vllm", "serve.transformers.dtype=float32"), "serve.transformers needs"),
        (("serve.server=vllm",), "has no serve.server vllm"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(*overrides)


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"method": "bitsandbytes", "scheme": "nf4"}, 4.5),
        ({"method": "bitsandbytes", "scheme": "nf4", "double_quant": True}, 4.127),
        ({"method": "bitsandbytes", "scheme": "int8"}, 8),
        ({"method": "quanto", "scheme": "float8"}, 8),
        ({"method": "quanto", "scheme": "int2"}, 2.25),
        ({"method": "hqq", "scheme": "int3"}, 3.5),
        ({"method": "torchao", "scheme": "int4", "group_size": 32}, 5),
        ({"method": "torchao", "scheme": "int8"}, 8),
    ],
)
def test_the_bits_of_a_weight_before_it_is_measured(
    quantization: dict[str, object], bits: float
) -> None:
    assert bits_per_weight(Quantization.model_validate(quantization)) == pytest.approx(bits, 1e-3)


def test_one_request_is_computed_at_a_time_so_there_is_one_cache() -> None:
    eight = serving_memory(recipe("serve.parallel=8"), LARGE, MACHINE, "cpu")
    one = serving_memory(recipe("serve.parallel=1"), LARGE, MACHINE, "cpu")
    assert eight is not None
    assert one is not None
    assert eight.needed == one.needed
    assert "transformers" in str(eight)


def test_memory_that_is_too_small_is_told_with_what_fits() -> None:
    small = Machine(HOST, 8 * 10**9)
    wanted = recipe(PLAIN)
    estimate = serving_memory(wanted, LARGE, small, "cpu")
    assert estimate is not None
    assert not estimate.fits
    hint = serving_hint(wanted, LARGE, small, "cpu")
    assert "bitsandbytes, scheme: nf4" in hint
    assert "parallel" not in hint


def test_float32_takes_twice_the_memory_to_build_and_to_serve() -> None:
    wide = recipe(PLAIN, "serve.transformers.dtype=float32")
    for estimate_of in (
        lambda wanted: serving_memory(wanted, LARGE, MACHINE, "cpu"),
        lambda wanted: building_memory(wanted, LARGE, MACHINE, "cpu")[0],
    ):
        plain, doubled = estimate_of(recipe(PLAIN)), estimate_of(wide)
        assert doubled.parts[0].size == 2 * plain.parts[0].size


def test_a_gpu_holds_weights_and_one_cache() -> None:
    there = Machine(HOST, 32 * 10**9, (Gpu("a GPU", 24 * 10**9, (8, 9)),))
    estimate = serving_memory(recipe(PLAIN), LARGE, there, "cuda")
    assert estimate is not None
    assert estimate.place == "the GPU's memory"
    assert estimate.there == 24 * 10**9
    assert {part.what for part in estimate.parts} == {"weights", "process", "cache"}
