"""Quantizers: one adapter a tool, all of them in this one literal table.

An adapter describes the command that quantizes; it never runs it. A third party adds one through
the entry-point group `deployer.quantizers`.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from deployer.command import Command
from deployer.errors import PlanError
from deployer.quantizers.gguf_package import GgufPackage
from deployer.quantizers.llama_quantize import LlamaQuantize
from deployer.recipe import Quantization


class Quantizer(Protocol):
    """Makes a smaller model out of a 16-bit one."""

    tool: str
    toolchain: str
    format: str

    def supports(self, quantization: Quantization) -> bool:
        """Whether this tool can make what the recipe asks for."""

    def command(
        self, quantization: Quantization, source: Path, target: Path, imatrix: Path | None
    ) -> Command:
        """The command that reads `source` and writes `target`."""

    def substitutions(self, report: dict[str, object], log: str) -> list[dict[str, str]]:
        """Tensors that got another type than asked: [{tensor, wanted, used, why}].

        `report` is the worker's response ({} for a program), `log` what the command printed.
        """


QUANTIZERS: dict[str, Quantizer] = {
    "gguf": GgufPackage(),
    "llama-quantize": LlamaQuantize(),
}


def quantizers() -> dict[str, Quantizer]:
    """The table, with what installed packages add to it."""
    added = {entry.name: entry.load()() for entry in entry_points(group="deployer.quantizers")}
    return {**added, **QUANTIZERS}


def choose_quantizer(quantization: Quantization) -> Quantizer:
    """The tool the recipe names, or the first of the table that can do it without compiling."""
    table = quantizers()
    wanted = table.values() if quantization.tool == "auto" else [table[quantization.tool]]
    for quantizer in wanted:
        if quantizer.supports(quantization):
            return quantizer
    raise PlanError(
        f"no quantizer makes {quantization.method} {quantization.scheme}",
        f"Tools: {', '.join(table)}.",
    )
