"""GPTQ by AutoGPTQ: 4 or 8 bits, on an NVIDIA GPU only. Archived by its authors."""

from __future__ import annotations

from deployer.command import Command
from deployer.quantizers.calibrated import HEAD, worker_request
from deployer.quantizers.job import QuantizeJob
from deployer.recipe import Quantization

SCHEMES = ("w4a16", "w8a16")


class AutoGptq:
    tool = "auto-gptq"
    format = "gptq"
    merit = "it writes the classic GPTQ format; it is archived"

    def refusal(self, quantization: Quantization, device: str) -> str | None:
        if quantization.method != "gptq" or quantization.scheme not in SCHEMES:
            return f"makes gptq {' and '.join(SCHEMES)} only"
        if device != "cuda":
            return "needs CUDA to quantize"
        knobs = quantization.knobs
        if knobs["offload"]:
            return "has no offload: it always moves one layer at a time to the GPU"
        if tuple(knobs["ignore"]) != (HEAD,):
            return "always quantizes every layer but lm_head"
        return None

    def toolchain(self, device: str) -> str:
        return "auto-gptq"

    def command(self, job: QuantizeJob) -> Command:
        return Command(
            self.toolchain(job.device), worker="quantize_auto_gptq", request=worker_request(job)
        )

    def substitutions(self, report: dict[str, object], log: str) -> list[dict[str, str]]:
        """None: what it leaves at 16 bits is what the recipe ignores, and the worker reports it."""
        return []
