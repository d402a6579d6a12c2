"""Quantizers: one adapter a tool, all of them in this one literal table.

An adapter describes the command that quantizes; it never runs it. A third party adds one through
the entry-point group `deployer.quantizers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points

from deployer.errors import PlanError
from deployer.quantizers.auto_gptq import AutoGptq
from deployer.quantizers.autoawq import AutoAwq
from deployer.quantizers.gguf_package import GgufPackage
from deployer.quantizers.job import CalibrationSet, QuantizeJob, Quantizer
from deployer.quantizers.llama_quantize import LlamaQuantize
from deployer.quantizers.llm_compressor import LlmCompressor
from deployer.recipe import TOOLS, Quantization

__all__ = ["QUANTIZERS", "CalibrationSet", "Choice", "QuantizeJob", "Quantizer", "choose_quantizer"]

QUANTIZERS: dict[str, Quantizer] = {
    "gguf": GgufPackage(),
    "llama-quantize": LlamaQuantize(),
    "llm-compressor": LlmCompressor(),
    "autoawq": AutoAwq(),
    "auto-gptq": AutoGptq(),
}
"""In the order in which `tool: auto` asks them: what is maintained before what is deprecated."""


@dataclass(frozen=True)
class Choice:
    """The tool that will quantize, and why it is this one, in words."""

    quantizer: Quantizer
    why: str


def quantizers() -> dict[str, Quantizer]:
    """The table, with what installed packages add to it."""
    added = {entry.name: entry.load()() for entry in entry_points(group="deployer.quantizers")}
    return {**added, **QUANTIZERS}


def choose_quantizer(quantization: Quantization, device: str) -> Choice:
    """The tool the recipe names, or the first of the table that can do it on `device` (cpu, cuda).

    Raises PlanError, with every tool's reason, where none can.
    """
    table = quantizers()
    wanted: list[str] = [quantization.tool]
    if quantization.tool == "auto":
        known = {tool for tools in TOOLS.values() for tool in tools}
        fits = TOOLS[quantization.method]
        wanted = [tool for tool in table if tool in fits or tool not in known]
    refusals = []
    for quantizer in (table[tool] for tool in wanted):
        refusal = quantizer.refusal(quantization, device)
        if refusal is None:
            named = "the recipe names it" if quantization.tool != "auto" else quantizer.merit
            return Choice(quantizer, named)
        refusals.append(f"{quantizer.tool} {refusal}")
    raise PlanError(
        f"no tool makes {quantization.method} {quantization.scheme} on {device}: "
        + "; ".join(refusals),
        "Choose another scheme, tool or target.device.",
    )
