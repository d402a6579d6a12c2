"""The workers: standalone scripts; those that need only gguf and numpy run here in process."""

from __future__ import annotations

import ast
import errno
import importlib.util
import json
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize

WORKERS = Path(__file__).parents[2] / "deployer" / "workers"
SCRIPTS = sorted(WORKERS.glob("*.py"))


def load(name):
    """Import a worker script the way its toolchain's Python runs it."""
    spec = importlib.util.spec_from_file_location(name, WORKERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


def failure(module):
    """The worker's WorkerError class, as it imported it."""
    return module.WorkerError


@pytest.fixture
def quantize_gguf():
    return load("quantize_gguf")


@pytest.fixture
def tiny(tmp_path):
    """Write a GGUF file of the given tensors (numpy order) with a little metadata."""

    def write(tensors, name="in.gguf", arch="llama", **extra):
        path = tmp_path / name
        writer = GGUFWriter(path, arch)
        writer.add_string("general.name", "tiny")
        writer.add_file_type(1)
        writer.add_array("tokenizer.ggml.tokens", ["a", "Ġb", "你"])
        writer.add_array("tokenizer.ggml.scores", [0.5, -1.0, 3.25])
        for key, value in extra.items():
            writer.add_uint32(key, value)
        for tensor, data in tensors.items():
            writer.add_tensor(tensor, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def weights(rows, width, dtype=np.float16, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(dtype)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_no_worker_imports_deployer(script):
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            assert node.level == 0, "scripts have no package to be relative to"
        assert not [name for name in names if name.split(".")[0] == "deployer"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_worker_says_what_it_is_for(script):
    assert ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))


def test_quantized_file_keeps_metadata_and_picks_types_like_llama_quantize(quantize_gguf, tiny):
    source = tiny(
        {
            "token_embd.weight": weights(6, 96),
            "blk.0.attn_q.weight": weights(8, 96),
            "blk.0.attn_norm.weight": weights(1, 96, np.float32)[0],
            "blk.0.ffn_gate_inp.weight": weights(4, 96, np.float32),
            "blk.0.ffn_down.weight": weights(4, 40),
        }
    )
    out = source.with_name("out.gguf")
    said = quantize_gguf.main({"gguf": str(source), "out": str(out), "scheme": "q4_0"})
    assert said["tensors"] == 5
    assert said["types"] == {"q8_0": 1, "q4_0": 1, "f32": 2, "f16": 1}
    assert {(s["tensor"], s["wanted"], s["used"]) for s in said["substitutions"]} == {
        ("token_embd.weight", "q6_k", "q8_0"),
        ("blk.0.ffn_down.weight", "q4_0", "f16"),
    }
    assert said["size_bytes"] == out.stat().st_size
    read = GGUFReader(out)
    assert read.get_field("general.file_type").contents() == 2
    assert read.get_field("general.quantization_version").contents() == 2
    assert read.get_field("tokenizer.ggml.tokens").contents() == ["a", "Ġb", "你"]
    assert read.get_field("tokenizer.ggml.scores").contents() == [0.5, -1.0, 3.25]
    stored = sum(int(tensor.n_bytes) for tensor in read.tensors)
    elements = sum(int(tensor.n_elements) for tensor in read.tensors)
    assert said["bits_per_weight"] == pytest.approx(8 * stored / elements)


@pytest.mark.parametrize(("scheme", "tolerance"), [("q8_0", 0.02), ("q4_0", 0.4)])
def test_values_survive_within_the_schemes_precision(quantize_gguf, tiny, scheme, tolerance):
    original = weights(64, 128)
    source = tiny({"output.weight": weights(2, 256), "blk.0.ffn_up.weight": original})
    out = source.with_name("out.gguf")
    quantize_gguf.main({"gguf": str(source), "out": str(out), "scheme": scheme})
    (tensor,) = [t for t in GGUFReader(out).tensors if t.name == "blk.0.ffn_up.weight"]
    back = dequantize(tensor.data, tensor.tensor_type)
    assert np.abs(back - original.astype(np.float32)).max() < tolerance


def test_large_tensors_in_pieces_give_the_same_bytes(quantize_gguf, tiny, monkeypatch):
    source = tiny({"blk.0.ffn_up.weight": weights(100, 64), "output.weight": weights(7, 64)})
    whole, pieces = source.with_name("a.gguf"), source.with_name("b.gguf")
    quantize_gguf.main({"gguf": str(source), "out": str(whole), "scheme": "q4_0"})
    monkeypatch.setattr(sys.modules["_gguf_file"], "CHUNK_ELEMENTS", 192)
    quantize_gguf.main({"gguf": str(source), "out": str(pieces), "scheme": "q4_0"})
    assert whole.read_bytes() == pieces.read_bytes()


def test_untied_output_is_q8_0_and_its_embedding_follows_the_scheme(quantize_gguf, tiny):
    source = tiny({"token_embd.weight": weights(4, 256), "output.weight": weights(4, 256)})
    out = source.with_name("out.gguf")
    said = quantize_gguf.main({"gguf": str(source), "out": str(out), "scheme": "q4_0"})
    kinds = {t.name: t.tensor_type for t in GGUFReader(out).tensors}
    assert kinds["token_embd.weight"] == GGMLQuantizationType.Q4_0
    assert kinds["output.weight"] == GGMLQuantizationType.Q8_0
    assert said["substitutions"][0]["why"] == "numpy cannot make q6_k"


def test_attention_of_eight_experts_stays_at_q8_0(quantize_gguf, tiny):
    extra = {"llama.expert_count": 8}
    source = tiny({"blk.0.attn_v.weight": weights(4, 64), "output.weight": weights(4, 64)}, **extra)
    said = quantize_gguf.main(
        {"gguf": str(source), "out": str(source.with_name("o.gguf")), "scheme": "q4_0"}
    )
    assert said["types"] == {"q8_0": 2}


def test_rounding_twice_is_refused(quantize_gguf, tiny):
    source = tiny({"blk.0.ffn_up.weight": weights(4, 64), "output.weight": weights(4, 64)})
    once = source.with_name("once.gguf")
    quantize_gguf.main({"gguf": str(source), "out": str(once), "scheme": "q8_0"})
    with pytest.raises(failure(quantize_gguf), match="q8_0 already"):
        quantize_gguf.main(
            {"gguf": str(once), "out": str(source.with_name("x.gguf")), "scheme": "q4_0"}
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["blk.3.ffn_up.weight", "blk.3.attn_norm.weight"])
def test_a_value_that_is_no_number_is_refused_by_tensor_name(quantize_gguf, tiny, bad, name):
    data = weights(4, 64, np.float32)
    data[2, 5] = bad
    source = tiny({name: data, "output.weight": weights(4, 64)})
    with pytest.raises(failure(quantize_gguf), match=name):
        quantize_gguf.main(
            {"gguf": str(source), "out": str(source.with_name("x.gguf")), "scheme": "q8_0"}
        )


def damaged(path, edit):
    content = bytearray(path.read_bytes())
    edit(content)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda b: b.__setitem__(slice(0, 4), b"GGML"), "does not start with GGUF"),
        (lambda b: struct.pack_into("<Q", b, 8, 2**63), "claims 9223372036854775808 tensors"),
        (lambda b: struct.pack_into("<Q", b, 16, 2**63), "claims 9223372036854775808 entries"),
        (lambda b: struct.pack_into("<Q", b, 24, 2**62), "in the middle of a value"),
        (lambda b: b.__delitem__(slice(-512, None)), "ends at byte"),
        (lambda b: b.__delitem__(slice(120, None)), "in the middle of a value"),
        (lambda b: b.clear(), "cannot be read"),
    ],
    ids=["magic", "tensor count", "entry count", "key length", "cut data", "cut head", "empty"],
)
def test_a_damaged_gguf_is_refused_with_the_reason(quantize_gguf, tiny, edit, why):
    path = damaged(tiny({"blk.0.ffn_up.weight": weights(8, 64)}), edit)
    with pytest.raises(failure(quantize_gguf), match=why):
        sys.modules["_gguf_file"].GGUFFile(path)


def test_scan_names_the_first_tensor_that_is_not_finite(tiny):
    scan = load("scan_weights")
    clean = tiny({"a.weight": weights(4, 32), "b.weight": weights(4, 32)}, name="clean.gguf")
    assert scan.main({"path": str(clean)}) == {"tensors": 2, "tensor": None, "file": None}
    broken = weights(4, 32)
    broken[3, 31] = np.inf
    path = tiny({"a.weight": weights(4, 32), "b.weight": broken}, name="broken.gguf")
    assert scan.main({"path": str(path)}) == {
        "tensors": 2, "tensor": "b.weight", "file": "broken.gguf",
    }  # fmt: skip


def safetensors(path, tensors):
    header, blob = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, data) in tensors.items():
        raw = data.tobytes()
        offsets = [len(blob), len(blob) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(data.shape), "data_offsets": offsets}
        blob += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        ("BF16", np.array([0x3F80, 0x7F7F], np.uint16), np.array([0x3F80, 0xFF80], np.uint16)),
        ("F16", np.array([1, 65504], np.float16), np.array([1, np.nan], np.float16)),
        ("F32", np.array([1, 3e38], np.float32), np.array([-np.inf, 0], np.float32)),
        ("I64", np.array([-1, 2], np.int64), None),
    ],
)
def test_scan_reads_every_kind_of_safetensors(tmp_path, dtype, good, bad):
    scan = load("scan_weights")
    safetensors(tmp_path / "model-1.safetensors", {"x": (dtype, good)})
    assert scan.main({"path": str(tmp_path)})["tensor"] is None
    if bad is not None:
        safetensors(tmp_path / "model-2.safetensors", {"y": (dtype, good), "z": (dtype, bad)})
        found = scan.main({"path": str(tmp_path)})
        assert (found["tensor"], found["file"]) == ("z", "model-2.safetensors")


def test_scan_refuses_a_hostile_header_in_bounded_memory(tmp_path):
    scan = load("scan_weights")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(failure(scan), match="claims 9223372036854775808 bytes"):
        scan.main({"path": str(tmp_path)})


def test_scan_of_nothing_is_an_error_and_not_a_pass(tmp_path):
    scan = load("scan_weights")
    with pytest.raises(failure(scan), match="no weights"):
        scan.main({"path": str(tmp_path)})


@pytest.mark.parametrize(
    ("gguf", "checkpoint"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.11.attn_q.bias", "model.layers.11.self_attn.q_proj.bias"),
        ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
    ],
)
def test_tensor_names_of_the_checkpoint(gguf, checkpoint):
    assert load("dequantize_gguf").checkpoint_name(gguf) == checkpoint


def test_a_tensor_without_counterpart_is_refused_by_name():
    dequantize_gguf = load("dequantize_gguf")
    with pytest.raises(failure(dequantize_gguf), match=r"blk.0.ssm_a.weight has no counterpart"):
        dequantize_gguf.checkpoint_name("blk.0.ssm_a.weight")


def test_unsupported_architecture_is_named(tiny):
    dequantize_gguf = load("dequantize_gguf")
    source = sys.modules["_gguf_file"].GGUFFile(
        tiny({"token_embd.weight": weights(4, 32)}, arch="mamba")
    )
    with pytest.raises(failure(dequantize_gguf), match="architecture mamba"):
        dequantize_gguf.make_config(source)


def test_rows_are_put_back_in_the_checkpoints_order():
    """The converter's reordering of query and key rows, and ours, cancel out."""
    dequantize_gguf = load("dequantize_gguf")
    heads, size, width = 3, 8, 4
    original = np.arange(heads * size * width * 2, dtype=np.uint8).reshape(heads * size, width * 2)
    interleaved = original.reshape(heads, 2, size // 2, -1).swapaxes(1, 2).reshape(original.shape)
    tensor = type("T", (), {"shape": (width, heads * size), "height": heads * size})
    back = dequantize_gguf._uninterleave(interleaved, heads, tensor)
    assert back.tobytes() == original.tobytes()


def test_protocol_writes_the_explained_error(tmp_path, monkeypatch):
    protocol = load("_protocol")
    request, response = tmp_path / "in.json", tmp_path / "out.json"
    request.write_text('{"x": 1}', encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["worker", str(request), str(response)])
    monkeypatch.setattr(protocol.os, "_exit", lambda status: None)

    def main(received):
        raise protocol.WorkerError(f"x is {received['x']}", "do y")

    protocol.run(main)
    assert json.loads(response.read_text()) == {"error": {"message": "x is 1", "hint": "do y"}}


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_log_probability_that_is_no_number_is_an_error(value):
    protocol = load("_protocol")
    with pytest.raises(protocol.WorkerError, match="the loss is not a finite number"):
        protocol.finite(value, "the loss")


def test_converter_failures_name_the_architecture():
    converter = load("convert_checkpoint")
    unknown = converter._refusal("FooForCausalLM", ["Model FooForCausalLM is not supported"])
    assert unknown.message == "llama.cpp's converter does not know the architecture FooForCausalLM"
    other = converter._refusal("LlamaForCausalLM", ["missing tokenizer.json"])
    assert "LlamaForCausalLM" in other.message
    assert "missing tokenizer.json" in other.message


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    converter = load("convert_checkpoint")
    with pytest.raises(failure(converter), match="names no model architecture"):
        converter.main({"checkpoint": str(tmp_path), "out": "x", "source_tree": ".", "type": "f16"})


class Ended(BaseException):
    """Stands for the end of the process."""


def refuse_to_write(path, *_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def end_of(protocol, monkeypatch, tmp_path, main):
    """The exit status of a worker, run in this process."""

    def end(status):
        raise Ended(status)

    request = tmp_path / "request.json"
    request.write_text("{}", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["worker", str(request), str(tmp_path / "response.json")])
    monkeypatch.setattr(protocol.os, "_exit", end)
    with pytest.raises(Ended) as ended:
        protocol.run(main)
    return ended.value.args[0]


# What really comes out of Rust, numpy and torch on a full disk.
FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    OSError("Not enough free space to write 40000000 bytes after offset 0"),
    OSError("250000 requested and 242880 written"),
]


@pytest.mark.parametrize("cause", FULL, ids=range(len(FULL)))
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_told_by_the_exit_status(tmp_path, monkeypatch, capsys, cause, wrapped):
    protocol = load("_protocol")

    def main(request):
        if not wrapped:
            raise cause
        try:
            raise cause
        except Exception as error:
            raise protocol.WorkerError("the checkpoint cannot be converted") from error

    assert end_of(protocol, monkeypatch, tmp_path, main) == errno.ENOSPC
    assert str(cause) in capsys.readouterr().err
    assert not (tmp_path / "response.json").exists()


def test_a_response_that_the_disk_has_no_place_for(tmp_path, monkeypatch):
    protocol = load("_protocol")

    def main(request):
        monkeypatch.setattr(protocol.Path, "write_text", refuse_to_write)
        monkeypatch.setattr(protocol.traceback, "print_exc", lambda: refuse_to_write("log"))
        return {}

    assert end_of(protocol, monkeypatch, tmp_path, main) == errno.ENOSPC


def test_another_failure_of_a_worker_stays_a_crash(tmp_path, monkeypatch):
    protocol = load("_protocol")

    def main(request):
        raise OSError(errno.EACCES, "Permission denied")

    with pytest.raises(OSError, match="Permission denied"):
        end_of(protocol, monkeypatch, tmp_path, main)
    assert end_of(protocol, monkeypatch, tmp_path, lambda request: {"a": 1}) == 0
    assert json.loads((tmp_path / "response.json").read_text(encoding="utf-8")) == {"a": 1}
