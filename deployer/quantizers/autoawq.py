"""AWQ by AutoAWQ: 4 bits with zero points. Deprecated by its authors for llm-compressor."""

from __future__ import annotations

from deployer.command import Command
from deployer.quantizers.calibrated import quantizes_head, worker_request
from deployer.quantizers.job import QuantizeJob
from deployer.recipe import Quantization


class AutoAwq:
    tool = "autoawq"
    format = "awq"
    merit = "it searches for the best clipping; it is deprecated"

    def refusal(self, quantization: Quantization, device: str) -> str | None:
        if quantization.method != "awq":
            return "makes awq only"
        knobs = quantization.knobs
        if not knobs["zero_point"]:
            return "makes weights with zero points only"
        if knobs["group_size"] == -1:
            return "needs a group_size, not whole rows"
        if knobs["offload"]:
            return "has no offload: it always moves one layer at a time to the GPU"
        return "never quantizes lm_head: ignore it" if quantizes_head(quantization) else None

    def toolchain(self, device: str) -> str:
        return "autoawq-cuda" if device == "cuda" else "autoawq"

    def command(self, job: QuantizeJob) -> Command:
        return Command(
            self.toolchain(job.device), worker="quantize_autoawq", request=worker_request(job)
        )

    def substitutions(self, report: dict[str, object], log: str) -> list[dict[str, str]]:
        """None: what it leaves at 16 bits is what the recipe ignores, and the worker reports it."""
        return []
