"""AWQ and GPTQ by llm-compressor, vLLM's own tool; 8-bit weights and activations too."""

from __future__ import annotations

from deployer.command import Command
from deployer.quantizers.calibrated import worker_request
from deployer.quantizers.job import QuantizeJob
from deployer.recipe import Quantization


class LlmCompressor:
    tool = "llm-compressor"
    format = "compressed-tensors"
    merit = "it is maintained, and works on a CPU and on a GPU"

    def refusal(self, quantization: Quantization, device: str) -> str | None:
        if quantization.method not in ("awq", "gptq"):
            return "makes awq and gptq only"
        return "has no clip search" if quantization.clip else None

    def toolchain(self, device: str) -> str:
        return "llm-compressor-cuda" if device == "cuda" else "llm-compressor"

    def command(self, job: QuantizeJob) -> Command:
        return Command(
            self.toolchain(job.device),
            worker="quantize_llm_compressor",
            request=worker_request(job),
        )

    def substitutions(self, report: dict[str, object], log: str) -> list[dict[str, str]]:
        """None: what it leaves at 16 bits is what the recipe ignores, and the worker reports it."""
        return []
