"""End to end with the real demo model, through the `deployer` command: build, serve, load-test."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy
import pytest
from command_line import deployer, gone, home_beside, must
from gguf import GGUFReader
from guard import REPOSITORY

from deployer.artifacts import Bundle, file_digest
from deployer.home import Home

pytestmark = pytest.mark.integration

RECIPES = REPOSITORY / "recipes"
PROMPTS = {
    "The capital of France is": 12,
    "The capital of France is Paris. The capital of Italy is": 8,
    "1, 2, 3, 4, 5, 6,": 16,
}
"""Prompts that the model has a clear answer to, and how many tokens of it are compared."""


@pytest.fixture(scope="module")
def built_home(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Servers and load tests of this module's own; what is built is kept for the next run."""
    root = tmp_path_factory.mktemp("end-to-end") / "home"
    return home_beside(home, root, "store", "bundles")


@pytest.fixture
def fresh_home(home: Home, tmp_path: Path) -> Home:
    """A home where nothing was built yet."""
    return home_beside(home, tmp_path / "fresh")


@contextmanager
def served(what: str | Path, home: Home, name: str) -> Iterator[dict[str, Any]]:
    """A detached server of a bundle or recipe; stopped, with nothing left of it, at the end."""
    record = must("serve", what, "--detach", "--name", name, "--set", "serve.port=0", home=home)
    try:
        yield record
    finally:
        must("stop", name, home=home)
    assert gone(record["engine_pid"])
    assert gone(record["supervisor_pid"])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", httpx.URL(record["endpoint"]).port)) != 0


def complete(endpoint: str, prompt: str, tokens: int) -> str:
    request = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    url = f"{endpoint}/v1/completions"
    response = httpx.post(url, json=request, timeout=300, trust_env=False)
    text: str = response.raise_for_status().json()["choices"][0]["text"]
    return text


def stream(endpoint: str, prompt: str, tokens: int) -> tuple[int, int, bool]:
    """(pieces of text, output tokens by the server's count, whether [DONE] came)."""
    request = {
        "model": "m", "stream": True, "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens,
        "ignore_eos": True,
    }  # fmt: skip
    pieces = counted = 0
    done = False
    with httpx.stream(
        "POST", f"{endpoint}/v1/chat/completions", json=request, timeout=300, trust_env=False
    ) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            done = done or line == "data: [DONE]"
            assert not line.startswith("error"), line
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            counted = (event.get("usage") or {}).get("completion_tokens", counted)
            pieces += any(choice["delta"].get("content") for choice in event.get("choices", []))
    return pieces, counted, done


# Build


@pytest.mark.parametrize("name", ["smollm2-f16", "smollm2-q8_0", "smollm2-q4_0"])
def test_a_shipped_recipe_becomes_a_bundle(built_home: Home, name: str) -> None:
    document = must("build", RECIPES / f"{name}.yaml", home=built_home)
    assert document["name"] == name
    bundle = Bundle.read(Path(document["bundle"]))
    assert bundle.manifest.digest == document["digest"]
    for entry in bundle.manifest.files:
        assert file_digest(bundle.root / entry.path) == entry.sha256
    names = {entry.path for entry in bundle.manifest.files}
    assert {"model.gguf", "LICENSE", "tokenizer.json", "config.json", "README.md"} <= names
    low, high = {"smollm2-f16": (16, 16.1), "smollm2-q8_0": (8.5, 8.6), "smollm2-q4_0": (4.5, 5.5)}[
        name
    ]
    assert low <= document["bits_per_weight"] <= high
    assert document["quality"]["perplexity"]["value"] < 200
    if name != "smollm2-f16":
        limit = {"smollm2-q8_0": 1.05, "smollm2-q4_0": 1.5}[name]
        assert 0.9 < document["quality"]["perplexity_ratio"]["value"] < limit
    assert bundle.manifest.parity["chat_template"] is True
    assert bundle.manifest.tools["llama-cpp-python"] == "0.3.36"
    assert not [path for path in built_home.bundles.glob(".tmp/*") if name in path.name]


def test_an_unchanged_rebuild_is_cached(built_home: Home) -> None:
    must("build", RECIPES / "smollm2-q4_0.yaml", home=built_home)
    document = must("build", RECIPES / "smollm2-q4_0.yaml", home=built_home)
    assert document["cached"] is True
    assert all(stage["cached"] for stage in document["stages"])


def test_a_changed_serve_field_rebuilds_only_the_package(built_home: Home) -> None:
    must("build", RECIPES / "smollm2-q4_0.yaml", home=built_home)
    name = "serve-field-test"
    changes = ("--set", f"name={name}", "--set", "serve.parallel=3")
    shutil.rmtree(built_home.bundles / name, ignore_errors=True)
    document = must("build", RECIPES / "smollm2-q4_0.yaml", *changes, home=built_home)
    fresh = [stage["name"] for stage in document["stages"] if not stage["cached"]]
    shutil.rmtree(built_home.bundles / name)
    assert fresh == ["package"]


# Serve


def test_f16_and_q8_0_say_the_same(built_home: Home) -> None:
    answers = {}
    for name in ("smollm2-f16", "smollm2-q8_0"):
        recipe = RECIPES / f"{name}.yaml"
        must("build", recipe, home=built_home)
        with served(name, built_home, f"greedy-{name}") as record:
            assert record["state"] == "ready"
            answers[name] = {
                prompt: complete(record["endpoint"], prompt, tokens)
                for prompt, tokens in PROMPTS.items()
            }
    assert answers["smollm2-f16"] == answers["smollm2-q8_0"]
    assert "Paris" in answers["smollm2-f16"]["The capital of France is"]
    assert answers["smollm2-f16"]["1, 2, 3, 4, 5, 6,"].startswith(" 7, 8, 9")


def test_sixteen_streams_and_a_load_test_at_once_without_error(built_home: Home) -> None:
    with served(RECIPES / "smollm2-q4_0.yaml", built_home, "streams") as record:
        listed = must("status", home=built_home)["servers"]
        assert [server["name"] for server in listed] == ["streams"]
        prompts = [f"Tell me about the number {number}." for number in range(16)]
        with ThreadPoolExecutor(16) as pool:
            ends = list(pool.map(lambda p: stream(record["endpoint"], p, 32), prompts))
        assert [(counted, done) for _, counted, done in ends] == [(32, True)] * 16
        assert all(pieces >= 16 for pieces, _, _ in ends)

        ran = deployer("loadtest", "--profile", "smoke", "--json", home=built_home)
        assert ran.code == 0, ran.err
        result = ran.document
        requests = result["stages"][0]["requests"]
        assert requests["ok"] > 0
        assert not requests["errors"]
        (folder,) = built_home.loadtests.iterdir()
        assert (folder / "report.html").stat().st_size > 1000
        assert (folder / "result.json").is_file()
        assert must("logs", "streams", home=built_home)["lines"]


# A garbage model


def shuffle(path: Path) -> None:
    """Permute each matrix: the same values in the wrong places, as a broken tool leaves them."""
    rng = numpy.random.default_rng(7)
    for tensor in GGUFReader(path, "r+").tensors:
        if len(tensor.shape) > 1:
            flat = tensor.data.reshape(-1)
            flat[:] = rng.permutation(flat)


def zero(path: Path) -> None:
    """Forget what every layer computes."""
    for tensor in GGUFReader(path, "r+").tensors:
        if tensor.name.startswith("blk."):
            tensor.data[:] = 0


@pytest.mark.parametrize("spoil", [shuffle, pytest.param(zero, marks=pytest.mark.faults)])
def test_a_garbage_model_never_becomes_a_bundle(
    built_home: Home, fresh_home: Home, tmp_path: Path, spoil: Any
) -> None:
    bundle = must("build", RECIPES / "smollm2-f16.yaml", home=built_home)["bundle"]
    weights = tmp_path / "garbage.gguf"
    shutil.copyfile(Path(bundle) / "model.gguf", weights)
    spoil(weights)
    recipe = tmp_path / "garbage.yaml"
    recipe.write_text(
        "version: 1\nname: garbage\nsource: {gguf: garbage.gguf}\nquantization: {method: none}\n"
        "quality: {windows: 1}\n",
        encoding="utf-8",
    )
    ran = deployer("build", recipe, "--json", home=fresh_home)
    assert ran.code == 1
    assert ran.error["type"] == "QualityGateError"
    assert "no bundle was made" in ran.error["message"]
    assert ran.error["quality"]["perplexity"]["value"] > 200
    assert ran.error["hint"]
    assert not fresh_home.bundles.exists()
    assert not list((fresh_home.store / ".tmp").iterdir())
    assert deployer("serve", "garbage", home=fresh_home).code == 2


# Evaluate

SHORT = ("--window", "128", "--windows", "2", "--json")


def test_a_bundle_is_evaluated_again(built_home: Home) -> None:
    must("build", RECIPES / "smollm2-q4_0.yaml", home=built_home)
    document = must("evaluate", "smollm2-q4_0", *SHORT, home=built_home)
    quality = document["quality"]
    assert (document["passed"], quality["tokens"], quality["windows"]) == (True, 254, 2)
    ratio = quality["perplexity_ratio"]
    assert 1.0 < ratio["low"] < ratio["value"] < ratio["high"] < 1.6
    assert 0.05 < quality["kl_divergence"]["mean"] < 1.0
    assert 0.8 < quality["hidden_cosine"]["mean"] < 0.999
    assert quality["top1_agreement"] > 0.5
    folder = Path(document["folder"])
    assert json.loads((folder / "quality.json").read_text(encoding="utf-8"))["passed"] is True
    assert "KL divergence" in (folder / "quality.html").read_text(encoding="utf-8")


def test_a_bundle_whose_weights_were_exchanged_fails_its_evaluation(
    built_home: Home, tmp_path: Path
) -> None:
    original = Path(must("build", RECIPES / "smollm2-q4_0.yaml", home=built_home)["bundle"])
    damaged = tmp_path / "bundle"
    shutil.copytree(original, damaged)
    weights = damaged / "model.gguf"
    weights.chmod(0o644)
    rng = numpy.random.default_rng(7)
    for tensor in GGUFReader(weights, "r+").tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            tensor.data[:] = tensor.data[rng.permutation(len(tensor.data))]
    ran = deployer("evaluate", damaged, *SHORT, home=built_home)
    assert ran.code == 1
    assert ran.document["passed"] is False
    assert any("KL divergence" in missed for missed in ran.document["missed"])


def test_a_text_too_short_for_its_windows_is_refused_before_it_is_scored(built_home: Home) -> None:
    must("build", RECIPES / "smollm2-q4_0.yaml", home=built_home)
    ran = deployer("evaluate", "smollm2-q4_0", "--windows", "900", "--json", home=built_home)
    assert ran.code == 1
    assert "enough for 27 windows of 512; 900 are to be scored" in ran.error["message"]
    assert "quality.text" in ran.error["hint"]


# Last, since the toolchain it needs is compiled the first time (about eight minutes)


def test_q4_k_m_with_an_importance_matrix(built_home: Home) -> None:
    document = must("build", RECIPES / "smollm2-q4_k_m.yaml", home=built_home)
    assert 4.5 < document["bits_per_weight"] < 7
    assert document["quality"]["perplexity_ratio"]["value"] < 1.3
    assert {stage["name"] for stage in document["stages"]} >= {"imatrix", "quantize"}
    assert sum(document["types"].values()) == 272
    assert "Q5_0" in document["types"]  # 576 is no multiple of a K-quant's block of 256
    told = document["substitutions"]
    assert told
    assert {"tensor", "wanted", "used", "why"} == told[0].keys()
    assert "multiple of 256" in told[0]["why"]
    manifest = Bundle.read(Path(document["bundle"])).manifest
    assert manifest.quantization["substitutions"] == told
    assert manifest.quantization["tool_used"] == "llama-quantize"
