"""q4_0 and q8_0 by the `gguf` package: numpy, no compiler, the same bytes as llama-quantize."""

from __future__ import annotations

from pathlib import Path

from deployer.command import Command
from deployer.recipe import Quantization

SCHEMES = ("q4_0", "q8_0")


class GgufPackage:
    tool = "gguf"
    toolchain = "llama-cpp"
    format = "gguf"

    def supports(self, quantization: Quantization) -> bool:
        return quantization.scheme in SCHEMES and not quantization.imatrix

    def command(
        self, quantization: Quantization, source: Path, target: Path, imatrix: Path | None
    ) -> Command:
        request = {"gguf": str(source), "out": str(target), "scheme": quantization.scheme}
        return Command(self.toolchain, worker="quantize_gguf", request=request)

    def substitutions(self, report: dict[str, object], log: str) -> list[dict[str, str]]:
        found = report.get("substitutions")
        return list(found) if isinstance(found, list) else []
