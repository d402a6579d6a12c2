"""q4_0 and q8_0 by the `gguf` package: numpy, no compiler, the same bytes as llama-quantize."""

from __future__ import annotations

from deployer.command import Command
from deployer.quantizers.job import QuantizeJob
from deployer.recipe import Quantization

SCHEMES = ("q4_0", "q8_0")
TOOLCHAIN = "llama-cpp"


class GgufPackage:
    tool = "gguf"
    format = "gguf"
    merit = "it needs no compiler"

    def refusal(self, quantization: Quantization, device: str) -> str | None:
        if quantization.scheme not in SCHEMES:
            return f"makes {' and '.join(SCHEMES)} only"
        return "cannot use an importance matrix" if quantization.imatrix else None

    def toolchain(self, device: str) -> str:
        return TOOLCHAIN

    def command(self, job: QuantizeJob) -> Command:
        request = {
            "gguf": str(job.source),
            "out": str(job.target),
            "scheme": job.quantization.scheme,
        }
        return Command(TOOLCHAIN, worker="quantize_gguf", request=request)

    def substitutions(self, report: dict[str, object], log: str) -> list[dict[str, str]]:
        found = report.get("substitutions")
        return list(found) if isinstance(found, list) else []
