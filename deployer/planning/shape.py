"""The dimensions of a model as its config.json tells them: what checks and estimates are made of.

Known are the transformers of the Llama family and what is built like them: grouped-query
attention with q, k, v and o projections, a gated feed-forward part, or experts of that kind. For
any other architecture there is no shape, and checks that need one are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["outputs", "inputs"]
"""How tensor parallelism cuts a layer: every GPU has some of the outputs, or of the inputs."""

_DENSE = (
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
    "LlavaForConditionalGeneration", "Mistral3ForConditionalGeneration",
    "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
)  # fmt: skip
_EXPERTS = {
    "MixtralForCausalLM": "block_sparse_moe.experts.{expert}",
    "Qwen2MoeForCausalLM": "mlp.experts.{expert}",
    "Qwen3MoeForCausalLM": "mlp.experts.{expert}",
}
"""Architecture -> where its experts are in a layer."""
_MIXTRAL_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_KV_BYTES = 2


@dataclass(frozen=True)
class Linear:
    """One kind of matrix, and where it stands: `path` with {layer} and {expert} left open.

    `layers` are the layers that have it, `experts` how many a layer has (1 where it is dense).
    """

    path: str
    inputs: int
    outputs: int
    split: Split
    layers: tuple[int, ...]
    experts: int = 1

    @property
    def name(self) -> str:
        """The last word of its path, for example q_proj."""
        return self.path.rpartition(".")[2]

    def kept(self, ignore: Iterable[str]) -> int:
        """How many of it are quantized when the layers named by `ignore` are not.

        A pattern is the whole name of a module, its last word, or re: and a regular expression
        that the whole name begins with.
        """
        patterns = tuple(ignore)
        names = (self.path.format(layer=layer, expert=0) for layer in self.layers)
        return self.experts * sum(not _ignored(name, patterns) for name in names)

    @property
    def weights(self) -> int:
        """Weights of one matrix."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a model. `linears` are its matrices that a quantizer may quantize, the output
    layer (lm_head) among them unless it is tied to the embedding; `parameters` is an estimate.

    `context` is the longest text the model was made for, in tokens; `experts` is 0 for a dense one.
    """

    architecture: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    tied: bool
    experts: int
    linears: tuple[Linear, ...]
    parameters: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape | None:
        """The shape a Hugging Face config.json describes; None where it cannot be told.

        That is where the architecture is not known or a dimension is missing. Of a multimodal
        model the language part is described, and `parameters` leaves the rest out.
        """
        names = config.get("architectures")
        architecture = names[0] if isinstance(names, list) and names else None
        if architecture not in _DENSE and architecture not in _EXPERTS:
            return None
        text = config.get("text_config")
        table = {**config, **text} if isinstance(text, Mapping) else dict(config)
        try:
            return _shape(str(architecture), table)
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def linear_widths(self) -> dict[str, tuple[int, int]]:
        """Name -> (inputs, outputs) of the matrices that a quantizer may quantize."""
        return {linear.name: (linear.inputs, linear.outputs) for linear in self.linears}

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token takes in the key-value cache at 16 bits, all layers together."""
        return 2 * self.layers * self.kv_heads * self.head_dim * _KV_BYTES


def _ignored(name: str, patterns: tuple[str, ...]) -> bool:
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                if re.match(pattern[3:], name):
                    return True
            except re.error:
                continue  # the quantizer tells of it, with its own rules for patterns
        elif name == pattern or name.endswith("." + pattern):
            return True
    return False


def _shape(architecture: str, table: Mapping[str, Any]) -> ModelShape:
    hidden, layers = _size(table, "hidden_size"), _size(table, "num_hidden_layers")
    heads = _size(table, "num_attention_heads")
    kv_heads = _size(table, "num_key_value_heads", heads)
    head_dim = _size(table, "head_dim", hidden // heads)
    vocab, tied = _size(table, "vocab_size"), bool(table.get("tie_word_embeddings", False))
    intermediate = _size(table, "intermediate_size")
    experts = 0
    everywhere = tuple(range(layers))
    linears = [*_attention(hidden, heads * head_dim, kv_heads * head_dim, everywhere)]
    if architecture in _EXPERTS:
        experts = _size(table, "num_local_experts", table.get("num_experts"))
        linears += _expert_layers(architecture, table, hidden, experts, layers)
    else:
        linears += _gated("model.layers.{layer}.mlp", hidden, intermediate, everywhere)
    if not tied:
        linears.append(Linear("lm_head", hidden, vocab, "outputs", (0,)))
    matrices = sum(linear.weights * len(linear.layers) * linear.experts for linear in linears)
    norms = hidden * (2 * layers + 1)
    routers = hidden * experts * layers
    return ModelShape(
        architecture, hidden, intermediate, layers, heads, kv_heads, head_dim, vocab,
        _context(table), tied, experts, tuple(linears),
        matrices + vocab * hidden + norms + routers,
    )  # fmt: skip


def _context(table: Mapping[str, Any]) -> int:
    """Tokens the model was made for; stretched position embeddings count, as vLLM counts them."""
    tokens = _size(table, "max_position_embeddings")
    stretch = table.get("rope_scaling") or table.get("rope_parameters") or {}
    if not isinstance(stretch, Mapping):
        raise ValueError(f"rope_scaling is {stretch!r}")
    kind = stretch.get("rope_type", stretch.get("type"))
    factor = stretch.get("factor")
    if kind == "yarn" and factor:
        return int(_size(stretch, "original_max_position_embeddings", tokens) * factor)
    if kind in ("linear", "dynamic") and factor:
        return int(tokens * factor)
    return tokens


def _attention(hidden: int, queries: int, keys: int, layers: tuple[int, ...]) -> tuple[Linear, ...]:
    stem = "model.layers.{layer}.self_attn"
    return (
        Linear(f"{stem}.q_proj", hidden, queries, "outputs", layers),
        Linear(f"{stem}.k_proj", hidden, keys, "outputs", layers),
        Linear(f"{stem}.v_proj", hidden, keys, "outputs", layers),
        Linear(f"{stem}.o_proj", queries, hidden, "inputs", layers),
    )


def _gated(
    stem: str, hidden: int, wide: int, layers: tuple[int, ...], experts: int = 1
) -> tuple[Linear, ...]:
    names = _MIXTRAL_NAMES if "block_sparse_moe" in stem else {}
    return (
        Linear(f"{stem}.{names.get('gate_proj', 'gate_proj')}", hidden, wide, "outputs", layers,
               experts),
        Linear(f"{stem}.{names.get('up_proj', 'up_proj')}", hidden, wide, "outputs", layers,
               experts),
        Linear(f"{stem}.{names.get('down_proj', 'down_proj')}", wide, hidden, "inputs", layers,
               experts),
    )  # fmt: skip


def _expert_layers(
    architecture: str, table: Mapping[str, Any], hidden: int, experts: int, layers: int
) -> list[Linear]:
    """The feed-forward matrices of a mixture of experts; some layers may be dense."""
    dense = set(table.get("mlp_only_layers") or ())
    step = _size(table, "decoder_sparse_step", 1)
    sparse = tuple(n for n in range(layers) if n not in dense and (n + 1) % step == 0)
    rest = tuple(n for n in range(layers) if n not in sparse)
    wide = _size(table, "moe_intermediate_size", table["intermediate_size"])
    stem = "model.layers.{layer}."
    linears = [*_gated(stem + _EXPERTS[architecture], hidden, wide, sparse, experts)]
    if table.get("shared_expert_intermediate_size"):
        shared = _size(table, "shared_expert_intermediate_size")
        linears += _gated(stem + "mlp.shared_expert", hidden, shared, sparse)
    if rest:
        linears += _gated(stem + "mlp", hidden, _size(table, "intermediate_size"), rest)
    return linears


def _size(table: Mapping[str, Any], name: str, otherwise: Any = None) -> int:
    """A dimension; raises ValueError where it is missing or no positive number."""
    value = table.get(name)
    value = otherwise if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"{name} is {value!r}")
    return value
