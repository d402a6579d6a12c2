"""The parts of a model that are rounded together, and how much each column of a weight counts."""

import re

import numpy as np
from _gguf_file import FLOATS, GGUFFile
from _protocol import WorkerError
from quantize_gguf import KEPT

_BLOCK = re.compile(r"blk\.(\d+)\.")


def group_tensors(source, wanted=None):
    """{group: [Tensor]} in the file's order; raises WorkerError where nothing is left."""
    groups = {}
    for name, tensor in source.tensors.items():
        if tensor.kind in FLOATS and _quantizable(tensor):
            groups.setdefault(_group(name), []).append(tensor)
        elif tensor.kind not in FLOATS and tensor.height > 1:
            raise WorkerError(
                f"tensor {name} is {tensor.kind.name.lower()} already",
                "Measure the 16-bit model: what rounding costs is not seen in a rounded one.",
            )
    groups.pop(None, None)
    chosen = {
        name: tensors for name, tensors in groups.items() if re.fullmatch(wanted or ".*", name)
    }
    if not chosen:
        raise WorkerError(
            "the model has no part whose rounding can be measured",
            "Its tensors have names that deployer does not know.",
        )
    return chosen


def _quantizable(tensor):
    kept = any(part in tensor.name for part in KEPT)
    return tensor.height > 1 and tensor.name.endswith(".weight") and not kept


def _group(name):
    """The group of a tensor that may be quantized, None for what belongs to none."""
    if name == "token_embd.weight":
        return "embedding"
    if name == "output.weight":
        return "output"
    block = _BLOCK.match(name)
    if not block:
        return None
    part = "ffn" if ".ffn_" in name else "attention"
    if ".ffn_down" in name:  # its rows have another width, which other types may fit
        part = "ffn_down"
    return f"blk.{block[1]}.{part}"


def read_importance(path):
    """{tensor: float32 [experts, width]} of an importance matrix's file; {} without one."""
    if path is None:
        return {}
    tensors = GGUFFile(path).tensors
    found = {}
    for name, sums in tensors.items():
        stem, _, kind = name.rpartition(".")
        if kind != "in_sum2":
            continue
        counts = np.frombuffer(tensors[f"{stem}.counts"].data, np.float32)
        table = np.frombuffer(sums.data, np.float32).reshape(len(counts), -1)
        seen = counts[:, None] > 0
        found[stem] = np.where(seen, table / np.maximum(counts[:, None], 1), 1).astype(np.float32)
    return found
