"""vLLM with a LoRA adapter; vLLM that cannot start: the cause and the log's line are shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from slow import SLOW

from deployer import serving
from deployer.artifacts import FOLDER, Bundle, Manifest
from deployer.engines.vllm import CPU
from deployer.errors import ServerExited
from deployer.home import Home
from deployer.recipe import LoraAdapter, Serve, Vllm
from deployer.toolchains import provision

pytestmark = pytest.mark.integration


def bundle_of(root: Path) -> Bundle:
    manifest = Manifest(
        name="demo", digest="0", engine="vllm", weights=FOLDER, size_bytes=0,
        bits_per_weight=4.0, files=(), recipe={}, serve={}, source={},
        quantization={"kv_bytes_per_token": 23040}, quality={}, parity={}, tools={},
        created_by="test",
    )  # fmt: skip
    return Bundle(root, manifest)


@pytest.fixture
def own_home(home: Home, tmp_path: Path) -> Home:
    """The shared toolchains, and servers of this test's own."""
    provision.ensure(CPU, home)
    own = Home(tmp_path / "home")
    own.root.mkdir()
    (own.root / "toolchains").symlink_to(home.toolchains)
    return own


def write_adapter(folder: Path, checkpoint: Path, rank: int = 8) -> Path:
    """A LoRA adapter as PEFT saves it: random, on the queries and values of every layer."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    width, heads = config["hidden_size"], config["num_attention_heads"]
    rows = {"q_proj": width, "v_proj": width // heads * config["num_key_value_heads"]}
    random = np.random.default_rng(0)
    shapes = {
        f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{part}.weight": shape
        for layer in range(config["num_hidden_layers"])
        for name, height in rows.items()
        for part, shape in (("A", (rank, width)), ("B", (height, rank)))
    }
    header, data = {}, b""
    for name, shape in shapes.items():
        raw = (random.standard_normal(shape) * 0.2).astype("<f4").tobytes()
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": span}
        data += raw
    head = json.dumps(header).encode()
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(
        len(head).to_bytes(8, "little") + head + data
    )
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank,
        "lora_dropout": 0.0, "bias": "none", "target_modules": list(rows),
        "base_model_name_or_path": "demo",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def answer(endpoint: str, model: str) -> str:
    request = {"model": model, "prompt": "The capital of France is", "max_tokens": 8,
               "temperature": 0}  # fmt: skip
    response = httpx.post(f"{endpoint}/v1/completions", json=request, timeout=120, trust_env=False)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


@SLOW
@pytest.mark.timeout(600)
def test_an_adapter_is_served_beside_the_model_under_its_own_name(
    own_home: Home, demo_checkpoint: Path, tmp_path: Path
) -> None:
    adapter = LoraAdapter(name="tuned", path=str(write_adapter(tmp_path / "lora", demo_checkpoint)))
    serve = Serve(port=0, context=256, parallel=1, vllm=Vllm(eager=True, lora=(adapter,)))
    record = serving.start(bundle_of(demo_checkpoint), serve, own_home, device="cpu", detach=True)
    try:
        models: Any = httpx.get(f"{record.endpoint}/v1/models", trust_env=False).json()
        assert {model["id"] for model in models["data"]} == {"demo", "tuned"}
        said = {name: answer(record.endpoint, name) for name in ("demo", "tuned", "demo")}
    finally:
        serving.stop(own_home, record.name)
    assert "Paris" in said["demo"]
    assert said["tuned"] != said["demo"]


@pytest.mark.faults
def test_a_damaged_checkpoint_ends_with_the_cause_and_the_log(
    own_home: Home, demo_checkpoint: Path, tmp_path: Path
) -> None:
    """Right length, a tensor under another name: only the engine can tell."""
    broken = tmp_path / "bundle"
    shutil.copytree(demo_checkpoint, broken)
    name = b'"model.norm.weight"'
    with (broken / "model.safetensors").open("r+b") as stream:
        at = stream.read(1 << 20).index(name)
        stream.seek(at)
        stream.write(name.replace(b"norm", b"lost"))
    serve = Serve(port=0, context=256, parallel=1, vllm=Vllm(eager=True))
    try:
        with pytest.raises(ServerExited, match="could not load the model") as caught:
            serving.start(bundle_of(broken), serve, own_home, device="cpu", detach=True)
        (record,) = serving.status(own_home)
    finally:
        for left in serving.status(own_home):
            serving.stop(own_home, left.name)
    assert "lost" in caught.value.message  # the log's line that names it
    assert "deployer verify" in caught.value.hint
    assert (record.state, record.restarts) == ("failed", 0)
    assert not psutil.pid_exists(record.supervisor_pid)
