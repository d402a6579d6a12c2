"""What the tools for AWQ and GPTQ have in common: one form of request, and the head."""

from __future__ import annotations

from typing import Any

from deployer.quantizers.job import QuantizeJob
from deployer.recipe import Quantization

HEAD = "lm_head"


def worker_request(job: QuantizeJob) -> dict[str, Any]:
    """The request of a worker that quantizes a checkpoint; see `deployer/workers/quantize_*.py`."""
    if job.calibration is None:
        raise ValueError(f"{job.quantization.method} needs a calibration set")
    return {
        "source": str(job.source),
        "target": str(job.target),
        "method": job.quantization.method,
        "scheme": job.quantization.scheme,
        "device": job.device,
        "knobs": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in job.quantization.knobs.items()
        },
        "calibration": {
            "path": str(job.calibration.path),
            "kind": job.calibration.kind,
            "samples": job.calibration.samples,
            "length": job.calibration.length,
        },
    }


def quantizes_head(quantization: Quantization) -> bool:
    """Whether the recipe asks for a quantized output head, which most tools never make."""
    return HEAD not in quantization.knobs["ignore"]
