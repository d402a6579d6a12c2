"""Shapes: what config.json says of the published models, and refusal to guess."""

from __future__ import annotations

from typing import Any

import pytest
from model_shapes import LLAMA_8B, MIXTRAL, QWEN3_30B, SMOLLM2, shape

from deployer.planning.shape import ModelShape


@pytest.mark.parametrize(
    ("config", "billions"),
    [(SMOLLM2, 0.1345), (LLAMA_8B, 8.030), (MIXTRAL, 46.70), (QWEN3_30B, 30.53)],
)
def test_parameters_are_those_published(config: dict[str, Any], billions: float) -> None:
    assert shape(config).parameters / 1e9 == pytest.approx(billions, rel=0.001)


def test_the_demo_model_is_counted_exactly() -> None:
    """134,515,008 is the sum over the tensors of the demo's checkpoint."""
    assert shape(SMOLLM2).parameters == 134_515_008


def test_widths_of_a_dense_model() -> None:
    assert shape(SMOLLM2).linear_widths == {
        "q_proj": (576, 576),
        "k_proj": (576, 192),
        "v_proj": (576, 192),
        "o_proj": (576, 576),
        "gate_proj": (576, 1536),
        "up_proj": (576, 1536),
        "down_proj": (1536, 576),
    }
    assert shape(LLAMA_8B).linear_widths["lm_head"] == (4096, 128256)


def test_heads_may_be_wider_than_the_model() -> None:
    assert shape(QWEN3_30B).linear_widths["q_proj"] == (2048, 4096)
    assert shape(QWEN3_30B).linear_widths["o_proj"] == (4096, 2048)


def test_experts() -> None:
    assert shape(MIXTRAL).linear_widths["w2"] == (14336, 4096)
    assert shape(QWEN3_30B).linear_widths["down_proj"] == (768, 2048)
    assert (shape(MIXTRAL).experts, shape(LLAMA_8B).experts) == (8, 0)


def test_some_layers_of_a_mixture_are_dense() -> None:
    found = shape(QWEN3_30B, mlp_only_layers=[0, 1])
    dense = [x for x in found.linears if x.path.endswith("layer}.mlp.down_proj")]
    sparse = [x for x in found.linears if "experts" in x.path and x.name == "down_proj"]
    assert (dense[0].layers, dense[0].inputs) == ((0, 1), 6144)
    assert (len(sparse[0].layers), sparse[0].inputs) == (46, 768)


@pytest.mark.parametrize(
    ("config", "size"), [(SMOLLM2, 23_040), (LLAMA_8B, 131_072), (QWEN3_30B, 98_304)]
)
def test_the_cache_of_a_token(config: dict[str, Any], size: int) -> None:
    assert shape(config).kv_bytes_per_token == size


@pytest.mark.parametrize(
    ("scaling", "tokens"),
    [
        (None, 8192),
        ({"rope_type": "default"}, 8192),
        ({"rope_type": "llama3", "factor": 8.0}, 8192),
        ({"type": "linear", "factor": 2.0}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
    ],
)
def test_stretched_positions_lengthen_the_context(scaling: Any, tokens: int) -> None:
    assert shape(SMOLLM2, rope_scaling=scaling).context == tokens


def test_the_language_part_of_a_multimodal_model() -> None:
    config = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "hidden_size": 7,
        "text_config": {k: v for k, v in LLAMA_8B.items() if k != "architectures"},
    }
    assert shape(config).hidden == 4096


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["SomethingNewForCausalLM"]},
        {"architectures": None},
        {"architectures": []},
        {"hidden_size": None},
        {"num_hidden_layers": "30"},
        {"num_attention_heads": 0},
        {"vocab_size": True},
        {"architectures": ["MixtralForCausalLM"]},
        {"rope_scaling": {"type": "linear", "factor": "x"}},
        {"rope_scaling": "yarn"},
    ],
)
def test_what_cannot_be_told_is_not_guessed(changes: dict[str, Any]) -> None:
    assert ModelShape.from_config({**SMOLLM2, **changes}) is None


@pytest.mark.parametrize(
    ("ignore", "kept"),
    [
        ((), 30),
        (("lm_head",), 30),
        (("q_proj",), 0),
        (("self_attn",), 30),
        (("model.layers.3.self_attn.q_proj",), 29),
        ((r"re:.*layers\.[0-4]\.self_attn.*",), 25),
        (("re:.*(",), 30),
    ],
)
def test_ignored_layers(ignore: tuple[str, ...], kept: int) -> None:
    (queries,) = [linear for linear in shape(SMOLLM2).linears if linear.name == "q_proj"]
    assert queries.kept(ignore) == kept
