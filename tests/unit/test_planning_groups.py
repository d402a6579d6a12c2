"""Group sizes and tensor parallelism: one sentence with the layer and width, and what fits."""

from __future__ import annotations

from typing import Any

import pytest
from model_shapes import LLAMA_8B, QWEN3_30B, SMOLLM2, shape

from deployer.errors import PlanError
from deployer.planning.groups import check_group_size, check_shares, shares_evenly
from deployer.recipe import Quantization


def gptq(**knobs: Any) -> Quantization:
    return Quantization.model_validate({"method": "gptq", **knobs})


def test_the_default_does_not_fit_the_demo_model() -> None:
    with pytest.raises(PlanError) as caught:
        check_group_size(Quantization.model_validate({"method": "awq"}), shape(SMOLLM2))
    assert caught.value.message == (
        "group_size 128 does not divide the 576 inputs of q_proj, k_proj, v_proj, o_proj, "
        "gate_proj, up_proj"
    )
    assert caught.value.hint == "64 and 32 fit: --set quantization.group_size=64"


@pytest.mark.parametrize("size", [-1, 32, 64])
def test_sizes_that_fit_the_demo_model(size: int) -> None:
    check_group_size(gptq(group_size=size), shape(SMOLLM2))


def test_the_default_fits_a_usual_model() -> None:
    check_group_size(gptq(), shape(LLAMA_8B))
    check_group_size(gptq(), shape(LLAMA_8B), tensor_parallel=4)


def test_each_width_is_named() -> None:
    with pytest.raises(PlanError, match=r"the 576 inputs of .* and the 1536 inputs of down_proj"):
        check_group_size(gptq(group_size=100), shape(SMOLLM2))


def test_layers_that_are_left_alone_need_not_fit() -> None:
    ignore = ("lm_head", "re:.*self_attn", "gate_proj", "up_proj")
    check_group_size(gptq(ignore=ignore), shape(SMOLLM2))
    with pytest.raises(PlanError, match=r"of gate_proj$"):
        check_group_size(gptq(ignore=("re:.*self_attn", "up_proj")), shape(SMOLLM2))


def test_the_output_layer_counts_where_it_is_quantized() -> None:
    odd = shape(LLAMA_8B, hidden_size=4160, head_dim=128)
    others = "re:model.*(q|k|v|gate|up)_proj"
    check_group_size(gptq(ignore=(others, "lm_head")), odd)
    with pytest.raises(PlanError, match="the 4160 inputs of lm_head"):
        check_group_size(gptq(ignore=(others,)), odd)


def test_a_share_of_the_inputs_must_fit() -> None:
    """o_proj and down_proj are cut along their inputs, the others along their outputs."""
    check_group_size(gptq(group_size=64), shape(SMOLLM2), tensor_parallel=3)
    with pytest.raises(PlanError) as caught:
        check_group_size(gptq(), shape(QWEN3_30B), tensor_parallel=4)
    assert "the 192 inputs of down_proj on each of 4 GPUs" in caught.value.message
    assert caught.value.hint.startswith("64 and 32 fit")


@pytest.mark.parametrize(
    ("tool", "hint"), [("auto", "group_size=-1"), ("autoawq", "quantization.ignore")]
)
def test_where_no_group_size_fits(tool: str, hint: str) -> None:
    narrow = shape(SMOLLM2, hidden_size=584, head_dim=64)
    with pytest.raises(PlanError) as caught:
        check_group_size(Quantization.model_validate({"method": "awq", "tool": tool}), narrow)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "quantization", [gptq(scheme="w8a8"), Quantization.model_validate({"method": "none"})]
)
def test_what_has_no_groups_fits(quantization: Quantization) -> None:
    check_group_size(quantization, shape(SMOLLM2, hidden_size=584, head_dim=64))


@pytest.mark.parametrize(
    ("config", "fit"),
    [(SMOLLM2, [1, 3]), (LLAMA_8B, [1, 2, 4, 8, 16, 32]), (QWEN3_30B, [1, 2, 4, 8, 16, 32])],
)
def test_gpus_that_share_a_model_evenly(config: dict[str, Any], fit: list[int]) -> None:
    assert [count for count in range(1, 65) if shares_evenly(shape(config), count)] == fit


def test_heads_that_cannot_be_shared_are_told() -> None:
    with pytest.raises(PlanError, match="2 GPUs cannot share 9 attention heads") as caught:
        check_shares(shape(SMOLLM2), 2)
    assert "may be 1 or 3" in caught.value.hint
    check_shares(shape(SMOLLM2), 3)


def test_more_groups_of_gpus_than_layers() -> None:
    check_shares(shape(SMOLLM2), 1, 30)
    with pytest.raises(PlanError, match="31 groups of GPUs cannot share 30 layers"):
        check_shares(shape(SMOLLM2), 1, 31)
