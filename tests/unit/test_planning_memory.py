"""Memory: the arithmetic, what is compared with what, and hints that really fit."""

from __future__ import annotations

import re
from typing import Any

import pytest
from model_shapes import LLAMA_8B, MIXTRAL, SMOLLM2, shape

from deployer.errors import PlanError
from deployer.machine import Gpu
from deployer.planning import Machine, ModelShape
from deployer.planning.building_memory import building_memory
from deployer.planning.estimate import bits_per_weight
from deployer.planning.memory import check_memory
from deployer.planning.serving_memory import cache_bytes_per_token, serving_memory
from deployer.recipe import Quantization, Recipe, override_recipe
from deployer.toolchains.specs import Host

HOST = Host("Linux", "x86_64", "3.11", "avx2")
BASE = {
    "version": 1,
    "name": "tiny",
    "source": {"package": "some-model==1.0"},
    "target": {"engine": "vllm"},
    "quantization": {"method": "awq", "group_size": 64},
}
PLAIN = "quantization={method: none}"
LLAMA_CPP = ("target.engine=llama.cpp", "quantization={method: gguf, scheme: q4_0}")
SMALL, LARGE = shape(SMOLLM2), shape(LLAMA_8B)


def recipe(*overrides: str) -> Recipe:
    return override_recipe(BASE, overrides)


def machine(gigabytes: float, *gpus: float) -> Machine:
    found = tuple(Gpu("NVIDIA L4", int(size * 1e9), (8, 9)) for size in gpus)
    return Machine(HOST, int(gigabytes * 1e9), found)


def parts(wanted: Recipe, model: ModelShape, there: Machine, device: str) -> dict[str, int]:
    estimate = serving_memory(wanted, model, there, device)
    assert estimate is not None
    assert estimate.needed == sum(part.size for part in estimate.parts)
    return {part.what: part.size for part in estimate.parts}


# Weights


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"method": "none"}, 16),
        ({"method": "awq", "group_size": 64}, 4 + 20 / 64),
        ({"method": "awq", "group_size": 64, "zero_point": False}, 4 + 16 / 64),
        ({"method": "gptq"}, 4 + 16 / 128),
        ({"method": "gptq", "sym": False}, 4 + 20 / 128),
        ({"method": "gptq", "group_size": -1}, 4),
        ({"method": "gptq", "scheme": "w8a16"}, 8 + 16 / 128),
        ({"method": "gptq", "scheme": "w8a8"}, 8),
        ({"method": "bitsandbytes", "scheme": "nf4"}, 4.5),
        ({"method": "bitsandbytes", "scheme": "int8"}, 8),
        ({"method": "gguf", "scheme": "q4_0"}, 4.5),
    ],
)
def test_bits_of_a_weight(quantization: dict[str, Any], bits: float) -> None:
    assert bits_per_weight(Quantization.model_validate(quantization)) == bits


def test_the_embedding_stays_at_16_bits() -> None:
    embedding, matrices = 49152 * 576, 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    norms = 576 * 61
    weights = parts(recipe(), SMALL, machine(32), "cpu")["weights"]
    assert weights == round(matrices * (4 + 20 / 64) / 8) + 2 * (embedding + norms)


def test_layers_that_are_left_alone_stay_at_16_bits() -> None:
    all_ignored = recipe("quantization.ignore=['re:.*']")
    plain = parts(recipe(PLAIN), SMALL, machine(32), "cpu")["weights"]
    assert parts(all_ignored, SMALL, machine(32), "cpu")["weights"] == plain
    assert plain == 2 * SMALL.parameters


def test_an_output_layer_of_its_own_may_be_quantized() -> None:
    usual = parts(recipe(), LARGE, machine(64), "cpu")["weights"]
    smaller = parts(recipe("quantization.ignore=[]"), LARGE, machine(64), "cpu")["weights"]
    assert usual - smaller == pytest.approx(4096 * 128256 * (16 - 4 - 20 / 64) / 8, abs=1)


def test_float32_doubles_what_is_not_quantized() -> None:
    wide = parts(recipe(PLAIN, "serve.vllm.dtype=float32"), SMALL, machine(32), "cpu")
    usual = parts(recipe(PLAIN), SMALL, machine(32), "cpu")
    assert wide["weights"] == 2 * usual["weights"]
    assert wide["cache"] == 2 * usual["cache"]


def test_without_a_shape_the_size_of_the_source_counts() -> None:
    estimate = serving_memory(recipe(), None, machine(32), "cpu", 16 * 10**9)
    assert estimate is not None
    assert [part.what for part in estimate.parts] == ["weights", "buffers"]
    assert estimate.parts[0].size == round(16e9 * (4 + 20 / 64) / 16)
    assert serving_memory(recipe(), None, machine(32), "cpu") is None
    assert check_memory(recipe(), None, machine(32), "cpu") == ()


# The cache


def test_the_cache_of_all_slots_on_a_cpu() -> None:
    wanted = recipe("serve.parallel=4", "serve.context=1024")
    spare = 128  # vLLM keeps a block of its own
    assert parts(wanted, SMALL, machine(32), "cpu")["cache"] == (4 * 1024 + spare) * 23_040
    llama_cpp = recipe(*LLAMA_CPP, "serve.parallel=4", "serve.context=1024")
    assert parts(llama_cpp, SMALL, machine(32), "cpu")["cache"] == 4 * 1024 * 23_040


def test_the_cache_of_one_request_on_a_gpu_and_room_for_more() -> None:
    wanted = recipe("serve.parallel=64", "serve.context=16384")
    estimate = serving_memory(wanted, LARGE, machine(64, 24), "cuda")
    assert estimate is not None
    assert estimate.fits
    (cache,) = [part for part in estimate.parts if part.what == "cache"]
    assert cache.size == 16384 * 131_072
    room = 1 + (estimate.there - estimate.needed) // cache.size  # type: ignore[operator]
    assert f"room for {room} of 64 requests" in estimate.notes[0]
    few = serving_memory(recipe("serve.parallel=2"), LARGE, machine(64, 24), "cuda")
    assert few is not None
    assert few.notes == ()


def test_a_cache_of_a_set_size() -> None:
    wanted = recipe("serve.vllm.kv_cache_gib=3.0")
    assert parts(wanted, LARGE, machine(64), "cpu")["cache"] == 3 << 30
    assert parts(wanted, LARGE, machine(64, 24), "cuda")["cache"] == 3 << 30


@pytest.mark.parametrize(
    ("override", "size"),
    [
        ("serve.vllm.dtype=auto", 131_072),
        ("serve.vllm.kv_cache_dtype=fp8", 65_536),
        ("serve.vllm.tensor_parallel=2", 65_536),
        ("serve.vllm.pipeline_parallel=4", 32_768),
        ("serve.vllm.tensor_parallel=16", 16_384),  # 8 heads: two GPUs hold the same one
    ],
)
def test_what_a_token_takes_on_each_device(override: str, size: int) -> None:
    assert cache_bytes_per_token(recipe(override), LARGE) == size


# What does not fit


def refusal(wanted: Recipe, model: ModelShape | None, there: Machine, device: str) -> PlanError:
    with pytest.raises(PlanError) as caught:
        check_memory(wanted, model, there, device, None if model else 40 * 10**9)
    return caught.value


def test_the_refusal_shows_the_arithmetic() -> None:
    error = refusal(recipe(PLAIN), LARGE, machine(64, 16), "cuda")
    assert error.message.startswith("serving takes about 18.")
    assert "of the GPU's memory at gpu_memory_utilization 0.9, and there are 14.4 GB" in (
        error.message
    )
    assert "weights 16.1 GB (8.0 G x 16 bits)" in error.message
    assert "cache 0.27 GB (2,048 tokens x 131.1 kB)" in error.message
    assert "2 GPUs like this" in error.hint


def applied(wanted: Recipe, hint: str) -> list[Recipe]:
    """The recipe with each change that a hint offers as --set."""
    changes = re.findall(r"--set (\S+=[^\s.,]+(?:\.\d+)?)", hint)
    assert changes
    document = wanted.model_dump(mode="json", exclude_unset=True)
    return [override_recipe(document, (change,)) for change in changes]


@pytest.mark.parametrize(
    ("overrides", "there", "device"),
    [
        (("serve.parallel=64", "serve.context=8192"), machine(20), "cpu"),
        (("serve.vllm.kv_cache_gib=40.0",), machine(20), "cpu"),
        (("serve.context=131072",), machine(64, 24), "cuda"),
        ((*LLAMA_CPP, "serve.parallel=64", "serve.context=8192"), machine(20), "cpu"),
    ],
)
def test_what_a_hint_offers_fits(overrides: tuple[str, ...], there: Machine, device: str) -> None:
    wanted = recipe(*overrides)
    for changed in applied(wanted, refusal(wanted, LARGE, there, device).hint):
        found = serving_memory(changed, LARGE, there, device)
        assert found is not None
        assert found.fits, changed


def test_fewer_bits_are_offered_where_they_would_do() -> None:
    assert "4 bits" in refusal(recipe(PLAIN), LARGE, machine(15), "cpu").hint
    llama_cpp = recipe("target.engine=llama.cpp", "quantization={method: gguf, scheme: q8_0}")
    assert "scheme=q6_k" in refusal(llama_cpp, LARGE, machine(9), "cpu").hint


def test_where_nothing_would_do_the_hint_says_so() -> None:
    hint = refusal(recipe(PLAIN), shape(MIXTRAL), machine(8), "cpu").hint
    assert "larger machine" in hint
    assert "--set" not in hint


def test_a_source_of_known_size_and_no_shape_is_refused_too() -> None:
    assert (
        "weights 40.0 GB (as they are)" in refusal(recipe(PLAIN), None, machine(20), "cpu").message
    )


def test_a_gpu_that_is_not_there_is_estimated_and_not_compared() -> None:
    sentences = check_memory(recipe(), LARGE, machine(4), "cuda")
    assert [sentence.partition(" takes")[0] for sentence in sentences] == [
        "serving", "quantizing", "quantizing", "scoring the 16-bit model",
    ]  # fmt: skip
    assert sentences[0].startswith("serving takes about 7.9 GB of the GPU's memory: weights 5.9 GB")


# The build


def build(wanted: Recipe, model: ModelShape, there: Machine, device: str) -> dict[str, Any]:
    return {f"{e.purpose} {e.place}": e for e in building_memory(wanted, model, there, device)}


def test_quantizing_on_a_cpu_needs_the_model_at_32_bits_and_the_samples() -> None:
    wanted = recipe("calibration.samples=16", "calibration.length=128")
    found = build(wanted, SMALL, machine(32), "cpu")["quantizing this machine's memory"]
    sizes = {part.what: part.size for part in found.parts}
    assert sizes["weights"] == 4 * SMALL.parameters
    assert sizes["calibration"] == 2 * 16 * 128 * 576 * 4


def test_gptq_holds_a_hessian_for_each_matrix_of_a_layer() -> None:
    wanted = recipe("quantization={method: gptq}")
    found = build(wanted, LARGE, machine(64), "cpu")["quantizing this machine's memory"]
    sizes = {part.what: part.size for part in found.parts}
    assert sizes["Hessians"] == 4 * (6 * 4096**2 + 14336**2)


def test_a_gpu_holds_all_weights_or_one_layer() -> None:
    name = "quantizing the GPU's memory"
    whole = build(recipe(), LARGE, machine(64, 24), "cuda")[name].parts[0]
    layer = build(recipe("quantization.offload=true"), LARGE, machine(64, 24), "cuda")[name].parts[
        0
    ]
    assert (whole.what, whole.size) == ("weights", 2 * LARGE.parameters)
    assert (layer.what, layer.size) == (
        "one layer",
        2 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336),
    )


def test_too_many_samples_are_refused_with_a_number_that_fits() -> None:
    wanted = recipe("calibration.samples=4096", "calibration.length=4096")
    error = refusal(wanted, LARGE, machine(64), "cpu")
    assert error.message.startswith("quantizing takes about")
    assert "2 x 4096 x 4096 tokens x 4096 x 32 bits" in error.message
    samples = int(re.search(r"calibration\.samples=(\d+)", error.hint)[1])  # type: ignore[index]
    check_memory(recipe(f"calibration.samples={samples}", "calibration.length=4096"), LARGE,
                 machine(64), "cpu")  # fmt: skip
    assert samples > 32


def test_offload_is_offered_where_the_gpu_is_too_small_for_the_model() -> None:
    error = refusal(recipe(), LARGE, machine(64, 16), "cuda")
    assert error.message.startswith("quantizing takes about")
    assert "quantization.offload: true" in error.hint


def test_the_16_bit_model_must_fit_to_be_scored() -> None:
    error = refusal(recipe("quantization.offload=true"), LARGE, machine(64, 16), "cuda")
    assert error.message.startswith("scoring the 16-bit model takes about 17.7 GB")


def test_llama_cpp_builds_piece_by_piece() -> None:
    assert building_memory(recipe(*LLAMA_CPP), LARGE, machine(1), "cpu") == ()


def test_an_estimate_prints_as_json() -> None:
    estimate = serving_memory(recipe(), SMALL, machine(32), "cpu")
    assert estimate is not None
    document = estimate.as_json()
    assert document["needed"] == estimate.needed
    assert document["fits"] is True
    assert document["parts"][0]["what"] == "weights"


def test_gpus_share_the_model_that_is_scored() -> None:
    name = "scoring the 16-bit model the GPU's memory"
    one = build(recipe(), LARGE, machine(64, 24), "cuda")[name].parts[0]
    four = build(recipe("serve.vllm.tensor_parallel=4"), LARGE, machine(64, 24), "cuda")[name]
    assert four.parts[0].size == one.size // 4
    assert "shared by 4 GPUs" in four.parts[0].arithmetic
