"""Every type of the pinned llama.cpp release, by its own llama-quantize."""

from __future__ import annotations

import re
from pathlib import Path

from deployer.command import Command
from deployer.recipe import GGUF_SCHEMES, Quantization

_FALLBACK = re.compile(
    r"(\S+)\s+- ncols\s+\d+ not divisible by\s+(\d+) \(required for type\s+(\w+)\)"
    r".*falling back to\s+(\w+)"
)


class LlamaQuantize:
    tool = "llama-quantize"
    toolchain = "llama-cpp-native"
    format = "gguf"

    def supports(self, quantization: Quantization) -> bool:
        return quantization.scheme in GGUF_SCHEMES

    def command(
        self, quantization: Quantization, source: Path, target: Path, imatrix: Path | None
    ) -> Command:
        options = ("--imatrix", str(imatrix)) if imatrix else ()
        scheme = str(quantization.scheme).upper()
        arguments = (*options, str(source), str(target), scheme)
        return Command(self.toolchain, "llama-quantize", arguments)

    def substitutions(self, report: dict[str, object], log: str) -> list[dict[str, str]]:
        """llama-quantize tells of them in its log only."""
        return [
            {
                "tensor": tensor,
                "wanted": wanted,
                "used": used,
                "why": f"its width is no multiple of {width}",
            }
            for tensor, width, wanted, used in _FALLBACK.findall(log)
        ]
