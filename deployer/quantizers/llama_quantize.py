"""Every type of the pinned llama.cpp release, by its own llama-quantize."""

from __future__ import annotations

import re

from deployer.command import Command
from deployer.quantizers.job import QuantizeJob
from deployer.recipe import GGUF_SCHEMES, Quantization

_FALLBACK = re.compile(
    r"(\S+)\s+- ncols\s+\d+ not divisible by\s+(\d+) \(required for type\s+(\w+)\)"
    r".*falling back to\s+(\w+)"
)


TOOLCHAIN = "llama-cpp-native"


class LlamaQuantize:
    tool = "llama-quantize"
    format = "gguf"
    merit = "it makes every llama.cpp type"

    def refusal(self, quantization: Quantization, device: str) -> str | None:
        return None if quantization.scheme in GGUF_SCHEMES else "makes llama.cpp types only"

    def toolchain(self, device: str) -> str:
        return TOOLCHAIN

    def command(self, job: QuantizeJob) -> Command:
        options = ("--imatrix", str(job.imatrix)) if job.imatrix else ()
        scheme = str(job.quantization.scheme).upper()
        arguments = (*options, str(job.source), str(job.target), scheme)
        return Command(TOOLCHAIN, "llama-quantize", arguments)

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
