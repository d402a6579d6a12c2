"""End to end on the real transformers: weights quantized while they load, measured and served."""

from __future__ import annotations

import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_line import gone, home_beside, must
from guard import REPOSITORY
from openai_contract import check_openai_contract

from deployer import process
from deployer.artifacts import Bundle
from deployer.home import Home
from deployer.planning.estimate import bits_per_weight
from deployer.planning.loading import LOADING
from deployer.recipe import Quantization
from deployer.stages.evaluate import REFERENCE
from deployer.toolchains.provision import ensure
from deployer.toolchains.worker import WORKERS, worker_environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("load_formats.py")
LAYERS = 1
LAYER_WEIGHTS = 576 * (576 + 192 + 192 + 576 + 3 * 1536)
RECIPE = REPOSITORY / "recipes" / "smollm2-nf4.yaml"
QUICK = ("--set", "quality.windows=1", "--set", "quality.window=256")
"""One window: this is about what is built and served, not about how good the demo model is."""
LARGEST = {
    ("bitsandbytes", "nf4"): 0.5, ("bitsandbytes", "int8"): 0.1, ("quanto", "int8"): 0.1,
    ("quanto", "float8"): 0.2, ("quanto", "int4"): 0.8, ("quanto", "int2"): math.inf,
    ("hqq", "int8"): 0.1, ("hqq", "int4"): 0.5, ("hqq", "int3"): 3.0, ("hqq", "int2"): math.inf,
    ("torchao", "int8"): 0.1, ("torchao", "int4"): 0.5,
}  # fmt: skip
"""Method and scheme -> mean KL divergence from the 16-bit model at most, in nats a token."""


def streamed(endpoint: str, prompt: str) -> tuple[str, dict[str, Any]]:
    """(text, usage) of a greedy chat stream that ends as it should."""
    request = {
        "model": "smollm2-nf4", "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 12, "temperature": 0, "stream": True,
    }  # fmt: skip
    text, usage, done = "", {}, False
    with httpx.stream(
        "POST", f"{endpoint}/v1/chat/completions", json=request, timeout=300, trust_env=False
    ) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            done = done or line == "data: [DONE]"
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                usage = event.get("usage") or usage
    assert done
    return text, usage


def test_nf4_weights_are_made_while_loading_measured_and_served(home: Home, tmp_path: Path) -> None:
    own = home_beside(home, tmp_path / "home", "store", "bundles")
    document = must("build", RECIPE, *QUICK, home=own)
    assert 0.9 < document["quality"]["perplexity_ratio"]["value"] < 1.5
    manifest = Bundle.read(Path(document["bundle"])).manifest
    # 106 M weights of 134.5 M take 4.13 bits, the embedding keeps 16.
    assert manifest.bits_per_weight == pytest.approx(6.6, abs=0.1)
    assert document["bits_per_weight"] == manifest.bits_per_weight
    assert manifest.quantization["types"]["Linear4bit"] == 210
    assert manifest.quantization["load"]["double_quant"] is True
    assert "bitsandbytes" in manifest.tools
    assert manifest.quality["engine"].startswith("transformers ")

    record = must("serve", "smollm2-nf4", "--detach", "--set", "serve.port=0", home=own)
    try:
        prompt = "What is the capital city of France? Answer in one word."
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: streamed(record["endpoint"], prompt), range(4)))
        loaded = f"{manifest.bits_per_weight:.2f} bits a weight"
        assert loaded in Path(record["log"]).read_text(encoding="utf-8")
        for text, usage in answers:
            assert "Paris" in text
            assert usage["completion_tokens"] > 0
        check_openai_contract(
            f"{record['endpoint']}/v1", "smollm2-nf4", logprobs=False, usage_apart=False
        )
    finally:
        must("stop", "smollm2-nf4", home=own)
    assert gone(record["engine_pid"])


@pytest.fixture
def shallow(demo_checkpoint: Path, tmp_path: Path) -> Path:
    """The demo model cut off after one layer: loaded and quantized soon, and no good."""
    folder = tmp_path / "shallow"
    shutil.copytree(demo_checkpoint, folder, copy_function=os.link)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").unlink()
    config["num_hidden_layers"] = LAYERS
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_every_format_takes_its_bits_and_stays_near_the_sixteen_bit_model(
    home: Home, shallow: Path, work: Any, tmp_path: Path
) -> None:
    text = "The history of the city begins with a small harbour on the river. " * 20
    keep = tmp_path / REFERENCE
    request = {"model": str(shallow), "text": text, "window": 64, "windows": 1}
    plain = work("transformers", "score_transformers", {**request, "keep": str(keep)})
    loads = [
        Quantization.model_validate({"method": method, "scheme": scheme}).load
        for (method, scheme), where in LOADING.items()
        if scheme and where.cpu is None
    ]
    asked, answered = tmp_path / "request.json", tmp_path / "response.json"
    document = {
        "workers": str(WORKERS), "request": {**request, "reference": str(keep)}, "loads": loads,
    }  # fmt: skip
    asked.write_text(json.dumps(document), encoding="utf-8")
    process.run(
        [str(ensure("transformers", home).python), "-I", str(SCRIPT), str(asked), str(answered)],
        env=worker_environment({}), log_path=tmp_path / "log", timeout=300,
    )  # fmt: skip
    found = json.loads(answered.read_text(encoding="utf-8"))
    for load, scores in zip(loads, found, strict=True):
        assert load is not None
        name = (load["method"], load["scheme"])
        assert 0 < scores["kl_divergence"] < LARGEST[name], name
        saved = plain["memory"]["weights_bytes"] - scores["memory"]["weights_bytes"]
        bits = 16 - 8 * saved / (LAYERS * LAYER_WEIGHTS)
        assert bits == pytest.approx(bits_per_weight(Quantization(**load)), abs=0.3), name
