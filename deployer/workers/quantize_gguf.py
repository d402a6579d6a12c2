"""Quantize a 16- or 32-bit GGUF file to q4_0 or q8_0 with numpy; no compiler, bounded memory.

Request: {gguf, out, scheme}. Response: {tensors, types: {q4_0: count, …}, substitutions:
[{tensor, wanted, used, why}], bits_per_weight, size_bytes}. The file is written tensor by tensor;
the same input gives the same bytes. Which tensor gets which type follows llama-quantize, except
that q6_k, which numpy cannot make, becomes q8_0 (reported).
"""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from _gguf_file import FLOATS, INTEGERS, GGUFFile, Q, entry, stored_bytes, write_gguf
from _protocol import WorkerError, progress, run
from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf.constants import GGML_QUANT_VERSION
from gguf.quants import quantize

SCHEMES = {
    "q4_0": (Q.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "q8_0": (Q.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
# Small, sensitive or not a matrix to multiply with: llama-quantize leaves these as they are.
KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight",
    "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd",
    "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook",
    "mm.a.code_embd",
)  # fmt: skip
KEPT_NAMES = ("position_embd.weight", "token_types.weight")
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
ATTENTION_KV = ("attn_v.weight", "attn_k.weight", "attn_qkv.weight", "attn_kv_b.weight")


def main(request):
    if request["scheme"] not in SCHEMES:
        raise WorkerError(f"numpy cannot make {request['scheme']}", "Use llama-quantize for it.")
    target, file_type = SCHEMES[request["scheme"]]
    source = GGUFFile(request["gguf"])
    chosen, substitutions = choose_types(source, target)
    out = Path(request["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    listed = [(name, tensor.shape, chosen[name]) for name, tensor in source.tensors.items()]
    done = 0

    def produce(name):
        nonlocal done
        done += 1
        progress(done, len(listed), f"quantizing to {request['scheme']}")
        return converted(source.tensors[name], chosen[name])

    write_gguf(out, _entries(source, file_type), listed, source.alignment, produce)
    stored = sum(stored_bytes(shape, kind) for _, shape, kind in listed)
    return {
        "tensors": len(listed),
        "types": dict(Counter(kind.name.lower() for kind in chosen.values())),
        "substitutions": substitutions,
        "bits_per_weight": stored * 8 / sum(t.elements for t in source.tensors.values()),
        "size_bytes": out.stat().st_size,
    }


def _entries(source, file_type):
    """The source's metadata with the file type and quantization version set."""
    changed = {
        "general.file_type": int(file_type),
        "general.quantization_version": GGML_QUANT_VERSION,
    }
    kept = [
        raw for key, raw in source.raw.items()
        if key not in changed and not key.startswith("split.")
    ]  # fmt: skip
    return kept + [entry(key, value) for key, value in changed.items()]


def choose_types(source, target):
    """({tensor name: type}, [substitution]) for all tensors of the file."""
    chosen, substitutions = {}, []
    for name, tensor in source.tensors.items():
        if tensor.kind in INTEGERS:
            chosen[name] = tensor.kind
            continue
        if tensor.kind not in FLOATS:
            raise WorkerError(
                f"tensor {name} is {tensor.kind.name.lower()} already",
                "Quantize from a 16-bit file: rounding twice costs quality.",
            )
        wanted = _wanted(tensor, target, source)
        chosen[name], why = _fitting(tensor, wanted)
        if why:
            names = {"wanted": wanted.name.lower(), "used": chosen[name].name.lower()}
            substitutions.append({"tensor": name, **names, "why": why})
    return chosen, substitutions


def _wanted(tensor, target, source):
    """The type llama-quantize aims at, before it looks at the width."""
    if not _may_quantize(tensor):
        return tensor.kind
    arch = source.metadata.get("general.architecture")
    tied = "output.weight" not in source.tensors
    if tensor.name == "output.weight" or (tied and tensor.name in EMBEDDINGS):
        fits = tensor.width % GGML_QUANT_SIZES[target][0] == 0
        return Q.Q6_K if target is not Q.Q8_0 and fits and arch != "falcon" else Q.Q8_0
    eight_experts = source.metadata.get(f"{arch}.expert_count") == 8
    if eight_experts and any(part in tensor.name for part in ATTENTION_KV):
        return Q.Q8_0
    return target


def _may_quantize(tensor):
    kept = tensor.name in KEPT_NAMES or any(part in tensor.name for part in KEPT)
    return tensor.height > 1 and tensor.name.endswith("weight") and not kept


def _fitting(tensor, wanted):
    """(type used, why it is another one or "")."""
    used, why = wanted, ""
    if wanted is Q.Q6_K:
        used = Q.Q8_0
        why = "numpy cannot make q6_k"
        if tensor.width % GGML_QUANT_SIZES[Q.Q6_K][0]:
            why = f"its width {tensor.width} is no multiple of 256"
    block = GGML_QUANT_SIZES[used][0]
    if used not in FLOATS and tensor.width % block:
        used, why = Q.F16, f"its width {tensor.width} is no multiple of {block}"
    return used, why


def converted(tensor, kind):
    """The tensor's data as `kind`; at most the result and one chunk are in memory."""
    if tensor.kind in INTEGERS:
        return tensor.data
    row_bytes = stored_bytes((tensor.width,), kind)
    result = np.empty((tensor.height, row_bytes), np.uint8)
    for first, piece in tensor.chunks():
        rows = quantize(piece, kind)
        if kind is Q.F16 and not np.isfinite(rows).all():
            raise WorkerError(f"tensor {tensor.name} has values that f16 cannot hold")
        result[first : first + len(piece)] = rows.view(np.uint8)
    return result


if __name__ == "__main__":
    run(main)
