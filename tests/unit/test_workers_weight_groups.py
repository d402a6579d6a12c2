"""The parts of a model that are rounded together, and the importance matrix."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

WORKERS = Path(__file__).parents[2] / "deployer" / "workers"


def _load(name):
    sys.path.insert(0, str(WORKERS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(WORKERS))


groups = _load("_weight_groups")
files = _load("_gguf_file")
Error = _load("_protocol").WorkerError


def written(path, tensors):
    """A GGUF file of {name: float array}; two-dimensional ones at 16 bits, others at 32."""
    arrays = {
        name: np.asarray(values, np.float16 if np.ndim(values) > 1 else np.float32)
        for name, values in tensors.items()
    }
    kinds = {np.dtype(np.float16): files.Q.F16, np.dtype(np.float32): files.Q.F32}
    listed = [(name, a.shape[::-1], kinds[a.dtype]) for name, a in arrays.items()]
    files.write_gguf(path, [], listed, 32, lambda name: arrays[name])
    return files.GGUFFile(path)


@pytest.fixture
def model(tmp_path):
    matrix, vector = np.ones((2, 32)), np.ones(32)
    return written(
        tmp_path / "m.gguf",
        {
            "token_embd.weight": matrix, "output_norm.weight": vector, "output.weight": matrix,
            "blk.0.attn_q.weight": matrix, "blk.0.attn_norm.weight": vector,
            "blk.0.ffn_up.weight": matrix, "blk.0.ffn_gate_inp.weight": matrix,
            "blk.10.ffn_up.weight": matrix, "blk.10.ffn_down.weight": matrix,
            "strange.weight": matrix,
        },
    )  # fmt: skip


def test_a_block_has_three_groups_and_what_is_never_quantized_is_in_none(model):
    found = groups.group_tensors(model)
    assert {name: [t.name for t in tensors] for name, tensors in found.items()} == {
        "embedding": ["token_embd.weight"],
        "output": ["output.weight"],
        "blk.0.attention": ["blk.0.attn_q.weight"],
        "blk.0.ffn": ["blk.0.ffn_up.weight"],
        "blk.10.ffn": ["blk.10.ffn_up.weight"],
        "blk.10.ffn_down": ["blk.10.ffn_down.weight"],
    }


def test_a_pattern_chooses_groups(model):
    assert list(groups.group_tensors(model, r"blk\..*")) == [
        "blk.0.attention", "blk.0.ffn", "blk.10.ffn", "blk.10.ffn_down",
    ]  # fmt: skip
    with pytest.raises(Error, match="no part"):
        groups.group_tensors(model, "nothing")


def test_a_tensor_lies_where_its_offset_says(model):
    raw = Path(model.path).read_bytes()
    for tensor in model.tensors.values():
        assert raw[tensor.offset : tensor.offset + len(tensor.data)] == bytes(tensor.data)


def test_an_importance_matrix_is_the_mean_square_of_each_column(tmp_path):
    path = tmp_path / "i.gguf"
    sums, counts = np.array([2.0, 8.0], np.float32), np.array([4.0], np.float32)
    none_seen = np.array([0.0], np.float32)
    arrays = {
        "a.weight.in_sum2": sums, "a.weight.counts": counts,
        "b.weight.in_sum2": sums, "b.weight.counts": none_seen,
    }  # fmt: skip
    listed = [(name, a.shape, files.Q.F32) for name, a in arrays.items()]
    files.write_gguf(path, [], listed, 32, lambda name: arrays[name])
    found = groups.read_importance(path)
    assert found["a.weight"].tolist() == [[0.5, 2.0]]
    assert found["b.weight"].tolist() == [[1.0, 1.0]]
    assert groups.read_importance(None) == {}


def test_weights_that_were_rounded_already_are_refused(tmp_path):
    path = tmp_path / "q.gguf"
    blocks = np.zeros((2, 34), np.uint8)
    files.write_gguf(path, [], [("a.weight", (32, 2), files.Q.Q8_0)], 32, lambda _: blocks)
    with pytest.raises(Error, match="q8_0 already"):
        groups.group_tensors(files.GGUFFile(path))
