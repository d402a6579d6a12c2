"""Turn a GGUF file, quantized or not, back into a bf16 checkpoint of safetensors.

Request: {gguf, out_dir}. Response: {architecture, parameters, tensors, source_types: {type:
count}, bytes, name}. Writes config.json, generation_config.json, model.safetensors, tokenizer.json,
tokenizer_config.json, special_tokens_map.json and chat_template.jinja; the same input gives the
same bytes. Every weight must be finite.

Written out directly rather than through transformers, which reads the file several times over and
keeps the weights packed. Both generations of transformers read the result: RoPE's theta stands in
both places they look for it, and the tokenizer's class is one that both know.
"""

import json
import struct
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from _gguf_file import GGUFFile, Q
from _protocol import WorkerError, progress, run
from gguf.quants import quantize

# architecture: (model class, type, has query/key rows interleaved for llama.cpp's RoPE)
ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama", True),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", False),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", False),
}
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
UNSUPPORTED = ("rope_freqs.weight", "rope_factors_long.weight")


def main(request):
    from _gguf_tokenizer import write_tokenizer

    source = GGUFFile(request["gguf"])
    config = make_config(source)
    names = {name: checkpoint_name(name) for name in source.tensors}
    out = Path(request["out_dir"])
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", _generation_config(config))
    write_tokenizer(source.metadata, Path(request["gguf"]), out)
    write_safetensors(source, config, names, out / "model.safetensors")
    return {
        "architecture": config["architectures"][0],
        "name": str(source.metadata.get("general.name", "")),
        "parameters": sum(tensor.elements for tensor in source.tensors.values()),
        "tensors": len(names),
        "source_types": dict(Counter(t.kind.name.lower() for t in source.tensors.values())),
        "bytes": (out / "model.safetensors").stat().st_size,
    }


def make_config(source):
    """config.json of the checkpoint; raises WorkerError for a model it cannot describe."""
    arch = source.metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise WorkerError(
            f"a GGUF file of architecture {arch} cannot be turned back into a checkpoint",
            f"Supported: {', '.join(ARCHITECTURES)}. Name the original checkpoint as the source.",
        )

    def value(key, default=None):
        found = source.metadata.get(f"{arch}.{key}", default)
        if found is None:
            raise WorkerError(f"{source.path} does not say its {arch}.{key}")
        return found

    scaled = [name for name in UNSUPPORTED if name in source.tensors]
    if scaled or value("rope.scaling.type", "none") != "none" or value("expert_count", 0):
        raise WorkerError(
            "a GGUF file with scaled positions or experts cannot be turned back into a checkpoint",
            "Name the original checkpoint as the source.",
        )
    model_class, model_type, _ = ARCHITECTURES[arch]
    heads, hidden = value("attention.head_count"), value("embedding_length")
    theta = _shortest(value("rope.freq_base", 10000.0))
    config = {
        "architectures": [model_class],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": value("attention.key_length", hidden // heads),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": _shortest(value("attention.layer_norm_rms_epsilon")),
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "vocab_size": _tensor(source, "token_embd.weight").height,
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    if arch != "qwen2":
        config["attention_bias"] = "blk.0.attn_q.bias" in source.tensors
    for ours, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = source.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            config[f"{ours}_token_id"] = token
    return dict(sorted(config.items()))


def _tensor(source, name):
    if name not in source.tensors:
        raise WorkerError(f"{source.path} has no tensor {name}")
    return source.tensors[name]


def _shortest(value):
    """The shortest decimal that is the same 32-bit number: 1e-05 for 9.99999974737875e-06."""
    return float(str(np.float32(value)))


def _generation_config(config):
    return {key: config[key] for key in config if key.endswith("_token_id")}


def checkpoint_name(name):
    """A tensor's name in the checkpoint."""
    stem, _, suffix = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{suffix}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in LAYER_NAMES:
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.{suffix}"
    raise WorkerError(
        f"tensor {name} has no counterpart in the checkpoint",
        "Name the original checkpoint as the source.",
    )


def write_safetensors(source, config, names, path):
    """All tensors as bf16, one after the other."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    order = sorted(names, key=names.get)
    for name in order:
        tensor = source.tensors[name]
        end = offset + 2 * tensor.elements
        shape = list(reversed(tensor.shape))
        header[names[name]] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for done, name in enumerate(order, 1):
            out.write(_bf16(source.tensors[name], config))
            progress(done, len(order), "dequantizing to bf16")


def _bf16(tensor, config):
    """The tensor's values, in the checkpoint's row order, as bf16 bytes."""
    result = np.empty((tensor.height, tensor.width * 2), np.uint8)
    for first, piece in tensor.chunks():
        result[first : first + len(piece)] = quantize(piece, Q.BF16).view(np.uint8)
    if config["model_type"] != "llama":
        return result
    kind = tensor.name.split(".")[-2]
    if kind in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if kind == "attn_q" else "num_key_value_heads"]
        return _uninterleave(result, heads, tensor)
    return result


def _uninterleave(result, heads, tensor):
    """Undo the converter's reordering of query and key rows (RoPE's pairs lie side by side)."""
    rows = tensor.elements if len(tensor.shape) == 1 else tensor.height
    pairs = result.reshape(heads, rows // heads // 2, 2, -1)
    return np.ascontiguousarray(pairs.swapaxes(1, 2))


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
