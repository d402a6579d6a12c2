"""Real toolchains and workers on the demo model; and what happens when a toolchain fails."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import struct
import time
from pathlib import Path

import pytest

from deployer import process
from deployer.errors import CommandError, StageError, ToolchainError
from deployer.gguf_file import inspect_gguf
from deployer.home import Home
from deployer.toolchains import provision
from deployer.toolchains.worker import run_worker

pytestmark = pytest.mark.integration

STRINGS = [
    "Hello, world!", " leading space", "   three spaces", "trailing  ", "tab\tand\r\nlines\n\n\n",
    "你好,世界。今天天气怎么样?", "日本語とカタカナ 한국어", "🙂🚀👩‍👩‍👧‍👦 emoji",
    "naïve Å e\u0301", "مرحبا",
    "<|im_start|>user\nhi<|im_end|>", "<|endoftext|>", "x" * 40 + " " * 64 + "y",
    "1234567890 3.14159 0x1F", "def f(x):\n    return x**2", "don't we'll I'M", "", " ", "\n",
]  # fmt: skip
MESSAGES = [
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "你好 🙂  two spaces"},
]
TEXT = (
    "The city lies on the banks of a wide river, and for many centuries its bridges were the only "
    "way to cross it. Merchants came from far away to sell cloth, salt and wine in its markets. "
    "In the winter of that year the river froze, and the people walked over the ice. The old town "
    "hall was built of red brick, and its tower could be seen from every village in the valley."
)
TOKENS = 64


@pytest.fixture(scope="module")
def quantized(demo_f16, work, tmp_path_factory):
    """(file, what the worker said) for q4_0 and q8_0."""
    folder = tmp_path_factory.mktemp("quantized")
    made = {}
    for scheme in ("q4_0", "q8_0"):
        out = folder / f"{scheme}.gguf"
        request = {"gguf": str(demo_f16), "out": str(out), "scheme": scheme}
        made[scheme] = (out, work("llama-cpp", "quantize_gguf", request))
    return made


@pytest.fixture(scope="module")
def scores(demo_f16, demo_gguf, quantized, work, tmp_path_factory):
    """Scores of the same text: f16, and against it the package's file, q8_0 and q4_0."""
    kept = str(tmp_path_factory.mktemp("reference"))
    request = {"text": TEXT, "window": TOKENS + 1, "windows": 1}
    f16 = work("llama-cpp", "score_llama_cpp", {"model": str(demo_f16), **request, "keep": kept})
    files = {"origin": demo_gguf} | {scheme: path for scheme, (path, _) in quantized.items()}
    return {"f16": f16} | {
        name: work(
            "llama-cpp", "score_llama_cpp", {"model": str(path), **request, "reference": kept}
        )
        for name, path in files.items()
    }


def test_an_installed_toolchain_is_found_in_milliseconds(home):
    made = provision.ensure("llama-cpp", home)
    started = time.perf_counter()
    for _ in range(20):
        assert provision.find("llama-cpp", home) == made
    assert (time.perf_counter() - started) / 20 < 0.02
    assert made.versions["xllamacpp"]
    assert [e.current for e in provision.installed(home) if e.key == made.key] == [True]


def test_dequantizing_twice_gives_the_same_bytes(demo_gguf, demo_checkpoint, work, tmp_path):
    request = {"gguf": str(demo_gguf), "out_dir": str(tmp_path)}
    said = work("convert", "dequantize_gguf", request)
    assert said["parameters"] == 134_515_008
    names = sorted(path.name for path in demo_checkpoint.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (demo_checkpoint / name).read_bytes(), name


def test_both_generations_of_transformers_can_read_the_checkpoint(demo_checkpoint):
    config = json.loads((demo_checkpoint / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100_000.0
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    tokenizer = json.loads((demo_checkpoint / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["chat_template"]


def test_transformers_computes_the_same_model(home, demo_checkpoint, scores, tmp_path):
    """Rows, names, RoPE and ties are right: the checkpoint's own loss is the engine's."""
    script = (
        "import json, sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "path, ids = sys.argv[1], json.loads(sys.argv[2])\n"
        "model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)\n"
        "tokens = torch.tensor([[model.config.bos_token_id, *ids]])\n"
        "with torch.inference_mode():\n"
        "    loss = model(tokens, labels=tokens).loss.item()\n"
        "print(json.dumps({'loss': loss}))\n"
    )
    lines: list[str] = []
    process.run(
        [str(provision.ensure("convert", home).python), "-I", "-c", script,
         str(demo_checkpoint), json.dumps(scores["f16"]["ids"])],
        env=process.clean_environment({"OMP_NUM_THREADS": "2"}), log_path=tmp_path / "log",
        on_line=lines.append, timeout=300,
    )  # fmt: skip
    nll = scores["f16"]["nll"]
    assert json.loads(lines[-1])["loss"] == pytest.approx(sum(nll) / len(nll), abs=0.02)


def test_conversion_does_not_depend_on_where_the_checkpoint_lies(
    home, demo_checkpoint, demo_f16, work, tmp_path
):
    elsewhere = tmp_path / "another-name"
    shutil.copytree(demo_checkpoint, elsewhere)
    request = {
        "source_tree": str(provision.ensure("convert", home).source),
        "checkpoint": str(elsewhere), "out": str(tmp_path / "again.gguf"), "type": "f16",
        "name": "demo",
    }  # fmt: skip
    work("convert", "convert_checkpoint", request)
    assert (tmp_path / "again.gguf").read_bytes() == demo_f16.read_bytes()


def test_tokens_and_template_are_the_same_before_and_after(
    demo_checkpoint, demo_f16, demo_gguf, work
):
    question = {"strings": STRINGS, "messages": MESSAGES}
    before = work("convert", "checkpoint_parity", {"checkpoint": str(demo_checkpoint), **question})
    after, origin = (
        work(
            "llama-cpp", "score_llama_cpp",
            {"model": str(path), "text": TEXT, "window": 8, "windows": 1, **question},
        )["parity"]
        for path in (demo_f16, demo_gguf)
    )  # fmt: skip
    assert before == after == origin
    assert before["rendered"].endswith("<|im_start|>assistant\n")
    assert len(before["ids"][STRINGS.index("<|endoftext|>")]) == 1
    assert (before["bos"], before["eos"], before["vocab_size"]) == (1, 2, 49152)


def test_quantized_files_say_what_they_hold(quantized):
    path, said = quantized["q4_0"]
    assert said["types"] == {"q4_0": 210, "q8_0": 1, "f32": 61}
    assert [s["tensor"] for s in said["substitutions"]] == ["token_embd.weight"]
    assert inspect_gguf(path).bits_per_weight == pytest.approx(said["bits_per_weight"], abs=1e-3)
    assert quantized["q8_0"][1]["types"] == {"q8_0": 211, "f32": 61}
    assert quantized["q8_0"][1]["substitutions"] == []


def test_perplexity_ranks_the_files_as_their_bits(scores):
    perplexity = {name: score["perplexity"] for name, score in scores.items()}
    assert perplexity["f16"] == pytest.approx(perplexity["origin"], rel=0.03)
    assert perplexity["q8_0"] == pytest.approx(perplexity["f16"], rel=0.03)
    assert 1.0 < perplexity["q4_0"] / perplexity["f16"] < 1.5
    assert all(score["tokens"] == TOKENS for score in scores.values())
    assert len({score["ids_sha256"] for score in scores.values()}) == 1
    assert "Paris" in scores["f16"]["sample"]


def test_divergence_ranks_the_files_as_their_bits(scores):
    mean = {name: sum(score["kld"] or [0.0]) / TOKENS for name, score in scores.items()}
    assert 0.0 < mean["origin"] < 0.02
    assert 0.0 < mean["q8_0"] < 0.02
    assert 0.05 < mean["q4_0"] < 1.0
    same = [a == b for a, b in zip(scores["f16"]["top1"], scores["q8_0"]["top1"], strict=True)]
    assert sum(same) / TOKENS > 0.9
    assert min(scores["q8_0"]["cosine"]) > 0.99 > min(scores["q4_0"]["cosine"]) > 0.5


def test_scoring_takes_ids_and_counts_without_bos(demo_f16, scores, work):
    ids = scores["f16"]["ids"][:9]
    request = {"model": str(demo_f16), "ids": ids, "window": 9, "bos": False}
    plain = work("llama-cpp", "score_llama_cpp", request)
    assert (plain["tokens"], plain["ids"], plain["bos"]) == (8, ids, False)


def test_windows_do_not_see_each_other(demo_f16, scores, work):
    ids = scores["f16"]["ids"]
    request = {"model": str(demo_f16), "window": 9}
    both = work("llama-cpp", "score_llama_cpp", {**request, "ids": ids[:16]})
    second = work("llama-cpp", "score_llama_cpp", {**request, "ids": ids[8:16]})
    assert (both["windows"], second["windows"]) == (2, 1)
    assert both["nll"][8:] == pytest.approx(second["nll"], abs=1e-4)


def test_a_nan_is_found_in_the_converted_file(demo_f16, work, tmp_path):
    broken = tmp_path / "broken.gguf"
    content = bytearray(demo_f16.read_bytes())
    content[-2000:-1996] = b"\xff\x7f\xff\x7f"  # f16 NaN, in the last tensor's data
    broken.write_bytes(content)
    found = work("llama-cpp", "scan_weights", {"path": str(broken)})
    assert found["file"] == "broken.gguf"
    assert found["tensor"]
    request = {"gguf": str(broken), "out": str(tmp_path / "q.gguf"), "scheme": "q8_0"}
    with pytest.raises(StageError, match=found["tensor"]):
        work("llama-cpp", "quantize_gguf", request)


def _tensors(path):
    """Name -> (type, shape, bytes) of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: (t["dtype"], t["shape"], content[8 + length :][slice(*t["data_offsets"])])
        for name, t in header.items()
    }


TINY = """
import sys, torch, transformers
kind, tied, out = sys.argv[1], sys.argv[2] == "tied", sys.argv[3]
torch.manual_seed(0)
config = transformers.AutoConfig.for_model(
    kind, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, vocab_size=49152, max_position_embeddings=256,
    tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2, attention_bias=kind == "llama")
model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
for name, weight in model.named_parameters():
    torch.nn.init.normal_(weight, std=0.5)
model.save_pretrained(out)
"""


@pytest.mark.parametrize(("kind", "tied"), [("llama", "untied"), ("qwen3", "tied")])
def test_a_checkpoint_comes_back_from_gguf_unchanged(
    home, demo_checkpoint, work, tmp_path, kind, tied
):
    first, second = tmp_path / "first", tmp_path / "second"
    convert = provision.ensure("convert", home)
    process.run(
        [str(convert.python), "-I", "-c", TINY, kind, tied, str(first)],
        env=process.clean_environment(), log_path=tmp_path / "log", timeout=120,
    )  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_checkpoint / name, first / name)
    request = {
        "source_tree": str(convert.source), "checkpoint": str(first), "type": "bf16",
        "out": str(tmp_path / "tiny.gguf"),
    }  # fmt: skip
    work("convert", "convert_checkpoint", request)
    again = {"gguf": request["out"], "out_dir": str(second)}
    work("convert", "dequantize_gguf", again)
    before, after = (_tensors(folder / "model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


def test_unsupported_architecture_is_named(home, demo_checkpoint, work, tmp_path):
    checkpoint = tmp_path / "odd"
    shutil.copytree(demo_checkpoint, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config["architectures"] = ["OddForCausalLM"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    request = {
        "source_tree": str(provision.ensure("convert", home).source),
        "checkpoint": str(checkpoint), "out": str(tmp_path / "x.gguf"), "type": "f16",
    }  # fmt: skip
    with pytest.raises(StageError, match="does not know the architecture OddForCausalLM"):
        work("convert", "convert_checkpoint", request)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "cannot be rendered"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be rendered"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "did not finish in 2 s",
        ),
    ],
    ids=["huge range", "escape", "nested loops"],
)
def test_a_hostile_chat_template_is_stopped(demo_checkpoint, work, tmp_path, template, said):
    for name in ("tokenizer.json", "config.json", "tokenizer_config.json"):
        shutil.copy(demo_checkpoint / name, tmp_path / name)
    (tmp_path / "chat_template.jinja").write_text(template)
    request = {"checkpoint": str(tmp_path), "strings": [], "messages": MESSAGES}
    with pytest.raises(StageError, match=said):
        work("convert", "checkpoint_parity", request)


def test_a_file_llama_cpp_cannot_load_is_an_error_and_no_hang(home, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    request = {"model": str(path), "text": "x", "window": 4}
    with pytest.raises((StageError, CommandError)):
        run_worker(
            provision.ensure("llama-cpp", home), "score_llama_cpp", request,
            log_path=tmp_path / "log", timeout=60,
        )  # fmt: skip


def test_a_crash_keeps_its_traceback_in_the_log(home, tmp_path):
    log = tmp_path / "log"
    with pytest.raises(CommandError, match="failed with exit status 1") as caught:
        run_worker(provision.ensure("llama-cpp", home), "scan_weights", {}, log_path=log)
    assert "KeyError: 'path'" in caught.value.tail


# --- failures while a toolchain is made; each in a home of its own


@pytest.fixture
def empty_home(tmp_path) -> Home:
    return Home(tmp_path / "home")


def test_unreachable_index_is_one_sentence_and_the_next_run_succeeds(empty_home, home, monkeypatch):
    with monkeypatch.context() as offline:
        offline.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
        offline.setenv("UV_HTTP_RETRIES", "0")
        with pytest.raises(ToolchainError, match="the package index cannot be reached") as caught:
            provision.ensure("llama-cpp", empty_home)
    assert "\n" not in caught.value.message
    assert provision.installed(empty_home) == []
    assert [p.name for p in empty_home.toolchains.iterdir()] == [".locks"]
    monkeypatch.setenv("UV_CACHE_DIR", str(home.cache / "uv"))
    assert provision.ensure("llama-cpp", empty_home).versions["gguf"]


def test_a_package_with_another_hash_is_refused(empty_home, home, tmp_path, monkeypatch):
    from deployer.toolchains import specs

    locks = tmp_path / "locks"
    shutil.copytree(specs.LOCKS, locks)
    name, found, rest = (locks / "llama-cpp.txt").read_text().partition("tqdm==")
    entry, following = re.split(r"\n(?=\S)", rest, maxsplit=1)
    entry = re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, entry)
    (locks / "llama-cpp.txt").write_text(f"{name}{found}{entry}\n{following}")
    monkeypatch.setattr(specs, "LOCKS", locks)
    monkeypatch.setenv("UV_CACHE_DIR", str(home.cache / "uv"))
    with pytest.raises(ToolchainError, match="its hash differs"):
        provision.ensure("llama-cpp", empty_home)
    assert provision.installed(empty_home) == []


def _ensure(root, results):
    results.put(str(provision.ensure("llama-cpp", Home(Path(root))).root))


def test_two_processes_at_once_share_one_installation(empty_home, home, monkeypatch):
    monkeypatch.setenv("UV_CACHE_DIR", str(home.cache / "uv"))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    both = [context.Process(target=_ensure, args=(str(empty_home.root), results)) for _ in range(2)]
    for one in both:
        one.start()
    roots = {results.get(timeout=120) for _ in both}
    for one in both:
        one.join(30)
    assert len(roots) == 1
    log = next(empty_home.logs.glob("toolchain-llama-cpp-*.log")).read_text()
    assert log.count("Creating virtual environment") == 1


def test_a_killed_builder_leaves_nothing_that_hinders_the_next(empty_home, home, monkeypatch):
    monkeypatch.setenv("UV_CACHE_DIR", str(home.cache / "uv"))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    builder = context.Process(target=_ensure, args=(str(empty_home.root), results))
    builder.start()
    deadline = time.monotonic() + 60
    while not list(empty_home.toolchains.glob("llama-cpp-*/env")):
        assert time.monotonic() < deadline, "the builder never began"
        time.sleep(0.005)
    builder.kill()
    builder.join(30)
    assert provision.find("llama-cpp", empty_home) is None
    assert provision.ensure("llama-cpp", empty_home).versions["xllamacpp"]


# --- the compiled toolchain; the first run takes minutes


@pytest.mark.timeout(3600)
def test_compiled_llama_quantize_and_numpy_agree_byte_for_byte(home, demo_f16, quantized, tmp_path):
    import numpy as np
    from gguf import GGUFReader

    program = provision.ensure("llama-cpp-native", home).program("llama-quantize")
    for scheme, (ours, _) in quantized.items():
        theirs = tmp_path / f"{scheme}.gguf"
        process.run(
            [str(program), str(demo_f16), str(theirs), scheme, "2"],
            env=process.clean_environment(), log_path=tmp_path / "log", timeout=120,
        )  # fmt: skip
        expected = {tensor.name: tensor for tensor in GGUFReader(theirs).tensors}
        made = {tensor.name: tensor for tensor in GGUFReader(ours).tensors}
        assert made.keys() == expected.keys()
        for name, tensor in made.items():
            assert tensor.tensor_type == expected[name].tensor_type, name
            assert np.array_equal(tensor.data, expected[name].data), name


@pytest.mark.timeout(3600)
def test_llama_cpp_python_runs_over_the_compiled_library(home, demo_f16, tmp_path):
    toolchain = provision.ensure("llama-cpp-python", home)
    script = (
        "import sys, llama_cpp\n"
        "model = llama_cpp.Llama(sys.argv[1], n_ctx=256, n_threads=1, verbose=False)\n"
        "said = model('The capital of France is', max_tokens=4, temperature=0)\n"
        "print(said['choices'][0]['text'])\n"
    )
    lines: list[str] = []
    process.run(
        [str(toolchain.python), "-I", "-c", script, str(demo_f16)],
        env=process.clean_environment(), log_path=tmp_path / "log", on_line=lines.append,
        timeout=120,
    )  # fmt: skip
    assert "Paris" in lines[0]
