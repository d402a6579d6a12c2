"""Support: what the pinned vLLM loads on a CPU and on which GPUs, and what would work instead."""

from __future__ import annotations

import pytest
from model_shapes import SMOLLM2, shape

from deployer.errors import PlanError
from deployer.machine import Gpu
from deployer.planning.support import SUPPORT, check_context, check_gpus, check_support
from deployer.recipe import Recipe, override_recipe

BASE = {
    "version": 1,
    "name": "tiny",
    "source": {"package": "some-model==1.0"},
    "target": {"engine": "vllm"},
    "quantization": {"method": "gptq"},
}
V100 = Gpu("Tesla V100", 16 << 30, (7, 0))
T4 = Gpu("Tesla T4", 16 << 30, (7, 5))
A100 = Gpu("NVIDIA A100", 80 << 30, (8, 0))
L4 = Gpu("NVIDIA L4", 24 << 30, (8, 9))
AWQ, W8A16, W8A8 = (
    "quantization={method: awq}",
    "quantization={method: gptq, scheme: w8a16}",
    "quantization={method: gptq, scheme: w8a8}",
)
NF4, PLAIN = "quantization={method: bitsandbytes, scheme: nf4}", "quantization={method: none}"


def recipe(*overrides: str) -> Recipe:
    return override_recipe(BASE, overrides)


@pytest.mark.parametrize(
    ("override", "stored_as", "on_cpu"),
    [
        (AWQ, "awq", True),
        (AWQ, "compressed-tensors", True),
        ("quantization={method: gptq}", "compressed-tensors", True),
        ("quantization={method: gptq}", "gptq", True),
        (W8A8, "compressed-tensors", True),
        (W8A16, "compressed-tensors", False),
        (W8A16, "gptq", False),
        (NF4, "bitsandbytes", False),
        (PLAIN, "none", True),
    ],
)
def test_every_format_runs_on_a_gpu_and_some_on_a_cpu(
    override: str, stored_as: str, on_cpu: bool
) -> None:
    wanted = recipe(override)
    check_support(wanted, stored_as, "cuda")
    check_gpus(wanted, stored_as, (T4,))
    if on_cpu:
        check_support(wanted, stored_as, "cpu")
        return
    with pytest.raises(PlanError, match=r"cannot run .* weights on a CPU") as caught:
        check_support(wanted, stored_as, "cpu")
    assert "16-bit weights, w4a16 and w8a8" in caught.value.hint
    assert "target.device: cuda" in caught.value.hint


def test_the_table_has_no_row_that_no_recipe_reaches() -> None:
    schemes = {key[1] for key in SUPPORT}
    assert schemes == {None, "w4a16", "w8a16", "w8a8", "nf4", "int8"}


def test_a_format_vllm_does_not_load() -> None:
    with pytest.raises(PlanError, match="no w8a8 weights in the format awq") as caught:
        check_support(recipe(W8A8), "awq", "cuda")
    assert "compressed-tensors w8a8" in caught.value.hint


def test_other_engines_are_not_asked() -> None:
    plain = recipe("target.engine=llama.cpp", "quantization={method: gguf, scheme: q4_0}")
    check_support(plain, "gguf", "cpu")
    check_gpus(plain, "gguf", ())


@pytest.mark.parametrize(
    ("overrides", "stored_as", "words"),
    [
        (("quantization.desc_act=true",), "gptq", "no longer loads GPTQ weights with desc_act"),
        (("quantization.sym=false",), "gptq", "only when they are symmetric"),
        ((W8A16, "quantization.sym=false"), "compressed-tensors", "asymmetric w8a16"),
        ((AWQ, "serve.vllm.dtype=float32"), "awq", "not in float32"),
        (("quantization.group_size=96",), "gptq", "no kernel for w4a16 with groups of 96"),
        ((W8A16, "quantization.group_size=256"), "gptq", "w8a16 with groups of 256"),
    ],
)
def test_what_would_be_quantized_and_then_not_load(
    overrides: tuple[str, ...], stored_as: str, words: str
) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        check_support(recipe(*overrides), stored_as, "cuda")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("overrides", "stored_as", "device"),
    [
        (("quantization.desc_act=true",), "compressed-tensors", "cuda"),
        (("quantization.desc_act=true", "quantization.group_size=-1"), "gptq", "cuda"),
        (("quantization.sym=false",), "compressed-tensors", "cpu"),
        (("quantization.group_size=256",), "compressed-tensors", "cuda"),
        (("quantization.group_size=96",), "compressed-tensors", "cpu"),
    ],
)
def test_knobs_that_load(overrides: tuple[str, ...], stored_as: str, device: str) -> None:
    check_support(recipe(*overrides), stored_as, device)


def test_odd_groups_have_no_kernel_on_a_cpu() -> None:
    with pytest.raises(PlanError, match="even size on a CPU, not of 9"):
        check_support(recipe("quantization.group_size=9"), "compressed-tensors", "cpu")


def test_a_gpu_that_is_too_old_is_named() -> None:
    with pytest.raises(PlanError) as caught:
        check_gpus(recipe(AWQ), "awq", (V100,))
    assert caught.value.message == (
        "awq w4a16 weights need compute capability 7.5, and Tesla V100 has 7.0"
    )
    assert "target.device: cpu" in caught.value.hint


@pytest.mark.parametrize(
    ("field", "refused", "taken"),
    [
        ("dtype=bfloat16", T4, A100),
        ("kv_cache_dtype=fp8", A100, L4),
        ("kv_cache_dtype=fp8_e5m2", A100, L4),
    ],
)
def test_types_that_need_a_newer_gpu(field: str, refused: Gpu, taken: Gpu) -> None:
    wanted = recipe(f"serve.vllm.{field}")
    with pytest.raises(PlanError, match=rf"need.* {refused.name} has") as caught:
        check_gpus(wanted, "compressed-tensors", (refused,))
    assert field.partition("=")[0] in caught.value.hint
    check_gpus(wanted, "compressed-tensors", (taken,))


def test_only_the_gpus_in_use_must_do() -> None:
    check_gpus(recipe(), "compressed-tensors", (L4, V100))
    with pytest.raises(PlanError, match="Tesla V100"):
        check_gpus(recipe("serve.vllm.tensor_parallel=2"), "compressed-tensors", (L4, V100))


def test_more_gpus_than_there_are() -> None:
    wanted = recipe("serve.vllm.tensor_parallel=2", "serve.vllm.pipeline_parallel=2")
    with pytest.raises(PlanError, match="asks for 2 x 2 GPUs, and this machine shows 2") as caught:
        check_gpus(wanted, "compressed-tensors", (L4, L4))
    assert "at most 2" in caught.value.hint


def test_a_context_longer_than_the_model_reads() -> None:
    check_context(recipe("serve.context=8192"), shape(SMOLLM2))
    with pytest.raises(PlanError, match="8,193 tokens, and the model was made for 8,192") as caught:
        check_context(recipe("serve.context=8193"), shape(SMOLLM2))
    assert caught.value.hint == "--set serve.context=8192"
