"""Every type of the pinned llama.cpp release, by its own llama-quantize."""

from __future__ import annotations

import re
from collections.abc import Mapping

from deployer.command import Command
from deployer.quantizers.job import QuantizeJob
from deployer.recipe import GGUF_SCHEMES, Quantization

_FALLBACK = re.compile(
    r"(\S+)\s+- ncols\s+\d+ not divisible by\s+(\d+) \(required for type\s+(\w+)\)"
    r".*falling back to\s+(\w+)"
)

TOOLCHAIN = "llama-cpp-native"
MIXED_BASE = "q8_0"
"""The type of what a mix says nothing of, and the one its file is marked with."""
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"


class LlamaQuantize:
    tool = "llama-quantize"
    format = "gguf"
    merit = "it makes every llama.cpp type"

    def refusal(self, quantization: Quantization, device: str) -> str | None:
        mixes = quantization.method == "gguf" and quantization.mixed is not None
        known = mixes or quantization.scheme in GGUF_SCHEMES
        return None if known else "makes llama.cpp types only"

    def toolchain(self, device: str) -> str:
        return TOOLCHAIN

    def command(self, job: QuantizeJob) -> Command:
        options = ("--imatrix", str(job.imatrix)) if job.imatrix else ()
        scheme = str(job.quantization.scheme or MIXED_BASE).upper()
        types = _type_options(job.types)
        arguments = (*options, *types, str(job.source), str(job.target), scheme)
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


def _type_options(types: Mapping[str, str]) -> tuple[str, ...]:
    """llama-quantize takes patterns that match anywhere in a name: each is tied to both ends."""
    options: list[str] = []
    for tensor, kind in types.items():
        if tensor == _EMBEDDING:
            options += ["--token-embedding-type", kind]
        elif tensor == _OUTPUT:
            options += ["--output-tensor-type", kind]
        else:
            options += ["--tensor-type", f"^{re.escape(tensor)}$={kind}"]
    return tuple(options)
