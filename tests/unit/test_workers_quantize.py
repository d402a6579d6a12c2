"""What the quantizing workers share: samples, layers, the files of a checkpoint. No torch here."""

from __future__ import annotations

import importlib
import json
import struct
import sys
from collections import OrderedDict
from pathlib import Path

import pytest

WORKERS = Path(__file__).parents[2] / "deployer" / "workers"


@pytest.fixture
def worker(monkeypatch):
    """Import a worker script or a sibling of one, as the toolchain's Python does."""

    def load(name):
        monkeypatch.syspath_prepend(str(WORKERS))
        path = list(sys.path)
        try:
            return importlib.import_module(name)
        finally:
            sys.path[:] = path

    return load


@pytest.fixture
def calibration(worker):
    return worker("_calibration")


@pytest.fixture
def layers(worker):
    return worker("_layers")


@pytest.fixture
def files(worker):
    return worker("_checkpoint_files")


@pytest.fixture
def error(worker):
    return worker("_protocol").WorkerError


class Words:
    """A tokenizer with one token a word; the token is the word's number within it, or its length.

    `bos` is put before every text, as Llama's does.
    """

    def __init__(self, bos=None, template="{}"):
        self.bos_token_id = bos
        self.chat_template = template

    def encode(self, text, add_special_tokens=True):
        ids = [int(word) if word.isdigit() else len(word) for word in text.split()]
        return [self.bos_token_id, *ids] if add_special_tokens and self.bos_token_id else ids

    def apply_chat_template(self, messages, tokenize):
        assert not tokenize
        return " ".join(f"{message['role']} {message['content']}" for message in messages) + " "


def request(path, kind, samples, length):
    return {"path": str(path), "kind": kind, "samples": samples, "length": length}


def write(path, *lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


# Samples


def test_samples_are_consecutive_tokens_evenly_spread_over_the_text(calibration, tmp_path):
    text = write(tmp_path / "t.txt", " ".join(map(str, range(100))))
    found = calibration.load_samples(Words(), request(text, "text", 3, 10))
    assert [sample[0] for sample in found] == [0, 30, 60]
    assert all(sample == list(range(sample[0], sample[0] + 10)) for sample in found)
    assert found == calibration.load_samples(Words(), request(text, "text", 3, 10))


def test_all_of_a_text_that_just_fits_is_used(calibration):
    found = calibration.spread(list(range(64)), 4, 16)
    assert [token for sample in found for token in sample] == list(range(64))


def test_each_sample_starts_with_bos_where_the_tokenizer_puts_it(calibration, tmp_path):
    text = write(tmp_path / "t.txt", " ".join(map(str, range(100, 200))))
    found = calibration.load_samples(Words(bos=7), request(text, "text", 4, 10))
    assert [sample[0] for sample in found] == [7] * 4
    assert {len(sample) for sample in found} == {10}
    assert found[0] == [7, *range(100, 109)]


def test_too_little_text_says_what_there_is_and_what_is_asked_for(calibration, error, tmp_path):
    text = write(tmp_path / "t.txt", " ".join(["word"] * 70))
    with pytest.raises(error, match="gives 4 samples of 16 tokens; the recipe asks for 5") as told:
        calibration.load_samples(Words(), request(text, "text", 5, 16))
    assert "calibration.samples" in told.value.hint


def test_chats_are_rendered_and_joined_to_full_samples(calibration, tmp_path):
    chat = {"messages": [{"role": "user", "content": "1 2"}, {"role": "bot", "content": "3"}]}
    path = write(tmp_path / "c.jsonl", *[json.dumps(chat)] * 4, "")
    found = calibration.load_samples(Words(bos=9), request(path, "chats", 2, 10))
    assert found == [[4, 1, 2, 3, 3] * 2] * 2


def test_chats_need_a_template(calibration, error, tmp_path):
    path = write(tmp_path / "c.jsonl", json.dumps({"messages": [{"role": "u", "content": "x"}]}))
    with pytest.raises(error, match="no chat template") as told:
        calibration.load_samples(Words(template=None), request(path, "chats", 1, 1))
    assert "calibration.text" in told.value.hint


def test_rows_may_hold_messages_or_text(calibration, tmp_path):
    path = write(
        tmp_path / "r.jsonl",
        json.dumps({"text": "1 2 3", "other": 5}),
        "",
        json.dumps({"messages": [{"role": "user", "content": "7"}]}),
    )
    found = calibration.load_samples(Words(), request(path, "rows", 1, 5))
    assert found == [[1, 2, 3, 4, 7]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", "line 2 of r.jsonl is no JSON"),
        ('{"body": "x"}', "row 2 of r.jsonl has neither messages nor text"),
        ('["x"]', "row 2 of r.jsonl has neither"),
        ('{"messages": ["hello"]}', "row 2 of r.jsonl has neither"),
    ],
)
def test_a_bad_row_is_named(calibration, error, tmp_path, line, reason):
    path = write(tmp_path / "r.jsonl", '{"text": "a"}', line)
    with pytest.raises(error, match=reason):
        calibration.load_samples(Words(), request(path, "rows", 1, 1))


def test_a_file_of_texts_is_no_set_of_chats(calibration, error, tmp_path):
    path = write(tmp_path / "r.jsonl", '{"text": "a"}')
    with pytest.raises(error, match="rows without messages"):
        calibration.load_samples(Words(), request(path, "chats", 1, 1))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xfa", b" \n"])
def test_a_set_that_cannot_be_read_or_is_empty_is_explained(calibration, error, tmp_path, content):
    path = tmp_path / "t.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=r"cannot be read|gives 0 samples"):
        calibration.load_samples(Words(), request(path, "text", 1, 8))


def test_of_a_far_larger_set_rows_are_taken_evenly(calibration):
    rows = [f"{number:04d}" for number in range(1000)]
    found = calibration.thin(rows, 400)
    assert found == rows[::10]
    assert calibration.thin(rows, 10**6) == rows
    assert calibration.thin(["x" * 1000], 10) == ["x" * 1000]


# Layers

NAMES = {
    f"model.layers.{number}.{part}": (576, 192)
    for number in (0, 1)
    for part in ("self_attn.k_proj", "mlp.up_proj")
} | {"lm_head": (576, 1000)}


def test_ignored_are_whole_names_and_patterns(layers):
    assert layers.chosen_layers(NAMES, ["lm_head", "re:.*k_proj"]) == [
        "model.layers.0.mlp.up_proj",
        "model.layers.1.mlp.up_proj",
    ]
    one = layers.chosen_layers(NAMES, ["model.layers.1.mlp.up_proj"])
    assert set(NAMES) - set(one) == {"model.layers.1.mlp.up_proj"}


@pytest.mark.parametrize("entry", ["up_proj", "re:k_proj"])
def test_an_entry_that_names_no_layer_is_a_mistake(layers, error, entry):
    with pytest.raises(error, match="is no linear layer of the model") as told:
        layers.chosen_layers(NAMES, [entry])
    assert "model.layers.0.self_attn.k_proj" in told.value.hint


def test_the_head_may_be_ignored_where_it_is_none(layers):
    assert layers.chosen_layers(["a.1.b"], ["lm_head"]) == ["a.1.b"]


def test_something_must_be_left(layers, error):
    with pytest.raises(error, match="leaves no layer"):
        layers.chosen_layers(NAMES, ["re:.*"])


def test_a_group_size_that_divides_nothing_is_refused_by_name(layers, error):
    layers.check_groups(NAMES, list(NAMES), 64)
    layers.check_groups(NAMES, list(NAMES), -1)
    with pytest.raises(error, match=r"128 does not divide 576.*and of 3 more layers") as told:
        layers.check_groups(NAMES, [name for name in NAMES if name != "lm_head"], 128)
    assert "group_size" in told.value.hint


def test_autoawq_leaves_a_part_out_of_all_layers_or_of_none(worker, error):
    left_out = worker("quantize_autoawq").left_out
    names = list(NAMES)
    ups = [name for name in names if name.endswith("up_proj")]
    assert left_out(names, ups) == ["self_attn.k_proj"]
    assert left_out(names, [name for name in names if name != "lm_head"]) == []
    with pytest.raises(error, match=r"model.layers.1.self_attn.k_proj is not ignored"):
        left_out(names, [*ups, "model.layers.1.self_attn.k_proj"])


def test_copied_state_gives_copies_and_leaves_no_trace(worker):
    class Tensor(list):
        def clone(self):
            return Tensor(self)

    class Module:
        def __init__(self):
            self.weight = Tensor([1, 2])

        def state_dict(self):
            return OrderedDict(weight=self.weight)

    module = Module()
    with worker("quantize_autoawq").copied_state(module):
        saved = module.state_dict()
        module.weight[0] = 9
        assert saved["weight"] == [1, 2]
    assert module.state_dict()["weight"] is module.weight
    assert "state_dict" not in vars(module)


@pytest.mark.parametrize(
    ("scheme", "knobs", "weights"),
    [
        ("w4a16", {"group_size": 64, "zero_point": True},
         {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 64}),
        ("w8a16", {"group_size": -1, "sym": True},
         {"num_bits": 8, "symmetric": True, "strategy": "channel"}),
        ("w8a8", {"group_size": -1, "sym": True},
         {"num_bits": 8, "symmetric": True, "strategy": "channel"}),
    ],
)  # fmt: skip
def test_what_llm_compressor_is_asked_for(worker, scheme, knobs, weights):
    group = worker("quantize_llm_compressor").config_group(scheme, knobs)
    assert group["weights"] == {"type": "int", "dynamic": False, **weights}
    assert ("input_activations" in group) == (scheme == "w8a8")


# The files of a checkpoint


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}},
        {"text_config": {"rope_theta": 5e5}},
    ],
)
def test_theta_stands_in_both_places(files, config):
    before = json.dumps(config)
    both = files.with_both_thetas(config)
    text = both.get("text_config") or both
    assert text["rope_theta"] == text["rope_parameters"]["rope_theta"] == 5e5
    assert files.rope_theta(both) == 5e5
    scaled = "llama3" in before
    assert ("rope_scaling" in text) == scaled
    assert text["rope_parameters"]["rope_type"] == ("llama3" if scaled else "default")
    if scaled:
        assert text["rope_scaling"]["factor"] == text["rope_parameters"]["factor"] == 8.0
    assert json.dumps(config) == before
    assert files.with_both_thetas(both) == both


def test_a_model_without_one_theta_stays_as_it_is(files):
    config = {"rope_parameters": {"sliding": {"rope_theta": 1e4}, "full": {"rope_theta": 1e6}}}
    assert files.with_both_thetas(config) == config
    assert files.rope_theta({}) is None


def test_a_library_that_read_another_theta_is_refused(files, error):
    class Loaded:
        def __init__(self, theta):
            self.theta = theta

        def to_dict(self):
            return {"rope_theta": self.theta}

    files.check_theta({"rope_parameters": {"rope_theta": 100000}}, Loaded(100000.0))
    with pytest.raises(error, match=r"10000\.0; the checkpoint says 100000\.0"):
        files.check_theta({"rope_parameters": {"rope_theta": 100000}}, Loaded(10000.0))


def test_a_tokenizer_of_transformers_5_is_told_in_words_of_4(files):
    told = files.older_tokenizer(
        {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]}
    )
    assert told == {
        "tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<a>"],
    }  # fmt: skip
    known = {"tokenizer_class": "LlamaTokenizer"}
    assert files.older_tokenizer(known) == known


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"},
    "dtype": "bfloat16",
}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    write(folder / "config.json", json.dumps(CONFIG))
    for name in (
        "tokenizer.json", "chat_template.jinja", "merges.txt", "LICENSE", "USE_POLICY.md",
        "generation_config.json", "README.md", "model.safetensors",
    ):  # fmt: skip
        (folder / name).write_bytes(name.encode() + b"\r\n")
    write(folder / "tokenizer_config.json", json.dumps({"tokenizer_class": "TokenizersBackend"}))
    return folder


def quantizer_output(folder, tensors, quantization=None):
    folder.mkdir()
    header = json.dumps({name: {"data_offsets": [0, 0]} for name in tensors}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "model.safetensors").chmod(0o600)
    write(folder / "config.json", json.dumps({"quantization_config": quantization or {}}))
    write(folder / "recipe.yaml", "x")
    write(folder / "generation_config.json", '{"do_sample": true}')
    return folder


def test_transformers_4_sees_a_mended_copy_and_the_source_stays(files, source):
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    with files.for_transformers_4(source) as folder:
        config = json.loads((folder / "config.json").read_text())
        assert config["rope_theta"] == 1e5
        assert config["torch_dtype"] == "bfloat16"
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert (folder / "model.safetensors").resolve() == source / "model.safetensors"
    assert not folder.exists()
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_the_target_gets_the_sources_files_and_only_what_quantizing_changed(
    files, source, tmp_path
):
    tensors = ["a.0.q.qweight", "a.0.q.scales", "b.weight_packed", "b.weight_scale", "n.weight"]
    out = quantizer_output(tmp_path / "out", tensors, {"quant_method": "awq"})
    assert files.finish(source, out, "float16", True) == ["a.0.q", "b"]
    assert {path.name for path in out.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "merges.txt", "LICENSE", "USE_POLICY.md", "generation_config.json",
    }  # fmt: skip
    for path in out.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            assert path.read_bytes() == (source / path.name).read_bytes(), path.name
    assert (out / "model.safetensors").stat().st_mode & 0o044 == 0o044
    assert json.loads((out / "config.json").read_text()) == {
        **CONFIG, "rope_theta": 1e5, "dtype": "float16", "torch_dtype": "float16",
        "tie_word_embeddings": True, "quantization_config": {"quant_method": "awq"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tensors", "settings"),
    [(["a.weight"], {"quant_method": "awq"}), (["a.qweight"], None)],
)
def test_an_output_that_is_not_quantized_is_refused(
    files, error, source, tmp_path, tensors, settings
):
    out = quantizer_output(tmp_path / "out", tensors, settings)
    with pytest.raises(error, match="left no layer quantized"):
        files.finish(source, out, "float16", True)


def test_a_checkpoint_that_is_quantized_already_is_refused(files, error, tmp_path):
    write(tmp_path / "config.json", json.dumps({"quantization_config": {}}))
    with pytest.raises(error, match="quantized already"):
        files.read_config(tmp_path)
    with pytest.raises(error, match=r"no usable config\.json"):
        files.read_config(tmp_path / "nowhere")
