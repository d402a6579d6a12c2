"""The deployments whose exported files are kept in tests/golden/export, by file name.

To renew the files: DEPLOYER_RENEW_GOLDEN=1 .venv/bin/pytest -q tests/unit/test_exporting_golden.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from made_up_bundle import deployment

from deployer.exporting import kserve, kubernetes, production_stack
from deployer.exporting.deployment import Deployment

GOLDEN = Path(__file__).parent / "golden" / "export"
RENEW = "DEPLOYER_RENEW_GOLDEN"
Render = Callable[[Deployment], Mapping[str, str]]

_OCI = "oci://registry.example/demo:1"
_GPUS: dict[str, Any] = {
    "engine": "vllm", "device": "cuda", "measured": False,
    "options": {"model": _OCI, "replicas": 2, "key_secret": "chat-keys"},
}  # fmt: skip
_TENSOR = {**_GPUS, "serve": {"vllm": {"tensor_parallel": 2}}}
_PIPELINE = {**_GPUS, "serve": {"vllm": {"tensor_parallel": 2, "pipeline_parallel": 2}}}
_VLLM_CPU: dict[str, Any] = {
    "engine": "vllm", "device": "cpu", "serve": {"vllm": {"eager": True}},
    "taken": {"memory_bytes": 3_300_000_000, "ready_seconds": 48.2, "stop_seconds": 2.6},
    "options": {"model": "pvc://models/demo", "image": "registry.example/vllm-cpu:0.32.0"},
}  # fmt: skip
_LLAMA: dict[str, Any] = {
    "engine": "llama.cpp",
    "options": {
        "model": _OCI, "image": "registry.example/llama-server:1", "replicas": 2,
        "namespace": "chat", "key_secret": "chat-keys",
    },
}  # fmt: skip

EXAMPLES: dict[str, tuple[Render, dict[str, Any]]] = {
    "kubernetes-llama-cpp.yaml": (kubernetes.render, _LLAMA),
    "kubernetes-vllm-cpu.yaml": (kubernetes.render, _VLLM_CPU),
    "kubernetes-vllm-tensor.yaml": (kubernetes.render, _TENSOR),
    "kubernetes-vllm-pipeline.yaml": (kubernetes.render, _PIPELINE),
    "production-stack-vllm-cpu.yaml": (production_stack.render, _VLLM_CPU),
    "production-stack-vllm-tensor.yaml": (production_stack.render, _TENSOR),
    "kserve-vllm-cpu.yaml": (kserve.render, _VLLM_CPU),
    "kserve-vllm-tensor.yaml": (kserve.render, _TENSOR),
    "kserve-vllm-pipeline.yaml": (kserve.render, _PIPELINE),
}


@cache
def example(name: str) -> str:
    """The text of one example's file."""
    render, settings = EXAMPLES[name]
    (text,) = render(deployment(**settings)).values()
    return text


def parsed(text: str) -> list[Any]:
    """The documents of a YAML file."""
    return list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def renewing() -> bool:
    """Whether the kept files are to be written anew."""
    return bool(os.environ.get(RENEW))
