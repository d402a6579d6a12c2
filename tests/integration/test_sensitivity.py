"""Sensitivity on the real demo model: the table says what a model that was truly rounded shows."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from deployer.planning.mixing import Sensitivity, curve
from deployer.toolchains.worker import WORKERS

pytestmark = pytest.mark.integration

TEXT = Path(__file__).parents[2] / "deployer" / "data" / "calibration-en.txt"
WINDOWS = {"window": 128, "windows": 1}
GROUP = "blk.0.ffn_down"


@pytest.fixture(scope="module")
def text():
    return TEXT.read_text(encoding="utf-8")[:4000]


@pytest.fixture(scope="module")
def measured(work, demo_f16, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sensitivity")
    request = {
        "model": str(demo_f16), "text": text, "types": ["q4_0", "q8_0", "q4_k", "w4_g64"],
        "folder": str(folder), "groups": r"blk\.[01]\..*", **WINDOWS,
    }  # fmt: skip
    report = work("llama-cpp", "measure_sensitivity", request)
    assert not list(folder.iterdir())
    return report


def rounded_file(source: Path, target: Path) -> None:
    """The model with the last matrix of its first block rounded to q4_0, at 16 bits again."""
    sys.path.insert(0, str(WORKERS))
    try:
        files = importlib.import_module("_gguf_file")
    finally:
        sys.path.remove(str(WORKERS))
    model = files.GGUFFile(source)

    def produce(name):
        tensor = model.tensors[name]
        if not name.startswith("blk.0.ffn_down") or tensor.kind != Kind.F16:
            return tensor.data
        values = np.frombuffer(tensor.data, np.float16).reshape(tensor.height, tensor.width)
        stored = quantize(values.astype(np.float32), Kind.Q4_0)
        return dequantize(stored, Kind.Q4_0).astype(np.float16)

    listed = [(name, t.shape, t.kind) for name, t in model.tensors.items()]
    files.write_gguf(target, list(model.raw.values()), listed, model.alignment, produce)


def test_the_table_is_what_a_rounded_model_shows(measured, work, demo_f16, text, tmp_path):
    made = tmp_path / "rounded.gguf"
    rounded_file(demo_f16, made)
    asked = {"text": text, **WINDOWS}
    keep = str(tmp_path / "reference")
    work("llama-cpp", "score_llama_cpp", {"model": str(demo_f16), "keep": keep, **asked})
    scores = work("llama-cpp", "score_llama_cpp", {"model": str(made), "reference": keep, **asked})
    truth = math.fsum(scores["kld"]) / len(scores["kld"])
    (group,) = (group for group in measured["groups"] if group["name"] == GROUP)
    assert truth > 1e-4
    assert group["kld"]["q4_0"] == pytest.approx(truth, rel=1e-3)
    assert measured["ids_sha256"] == scores["ids_sha256"]


def test_fewer_bits_cost_more_and_a_type_that_does_not_fit_is_left_out(measured):
    names = [
        f"blk.{number}.{part}" for number in (0, 1) for part in ("attention", "ffn", "ffn_down")
    ]
    assert sorted(group["name"] for group in measured["groups"]) == names
    for group in measured["groups"]:
        wide = {"q4_k"} if group["name"].endswith("down") else set()  # 576 is no multiple of 256
        assert set(group["kld"]) == {"f16", "q4_0", "q8_0", "w4_g64"} | wide
        assert 0 == group["kld"]["f16"] < group["kld"]["q8_0"] < group["kld"]["q4_0"]
        assert group["kld"]["q8_0"] < group["kld"]["w4_g64"]
        assert group["bytes"]["q4_0"] == group["parameters"] * 18 // 32
        assert group["bytes"]["w4_g64"] == group["parameters"] * 4.25 / 8


def test_the_best_mixes_get_better_with_their_size(measured):
    json.dumps(measured)
    mixes = curve(Sensitivity.from_report(measured))
    assert len(mixes) > 4
    sizes = [mix.bytes for mix in mixes]
    costs = [mix.kld for mix in mixes]
    assert sizes == sorted(sizes)
    assert costs == sorted(costs, reverse=True)
