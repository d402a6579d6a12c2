"""What a quantizer adapter is asked and what it answers; the same for every tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from deployer.command import Command
from deployer.recipe import Quantization


@dataclass(frozen=True)
class CalibrationSet:
    """The samples a quantizer is tuned on: `samples` of at most `length` tokens from `path`.

    `kind` is what the file holds: plain text; chats (JSONL with `messages`); or rows of a data set
    (JSONL or parquet, with a column `messages` or `text`).
    """

    path: Path
    kind: Literal["text", "chats", "rows"]
    samples: int
    length: int


@dataclass(frozen=True)
class QuantizeJob:
    """One run of a quantizer.

    `source` and `target` are GGUF files for GGUF tools; for all others the folder of a 16-bit
    checkpoint, and a folder to fill with the quantized one. `device` is cpu or cuda. `types` gives
    tensors of a GGUF file a type of their own: name -> llama.cpp's type.
    """

    quantization: Quantization
    source: Path
    target: Path
    device: str = "cpu"
    imatrix: Path | None = None
    calibration: CalibrationSet | None = None
    types: Mapping[str, str] = field(default_factory=dict)


class Quantizer(Protocol):
    """Makes a smaller model out of a 16-bit one.

    `format` is how the weights are stored (gguf, awq, gptq, compressed-tensors). `merit` says why
    `tool: auto` takes this one where it can.
    """

    tool: str
    format: str
    merit: str

    def refusal(self, quantization: Quantization, device: str) -> str | None:
        """Why this tool cannot make it on `device`, as the end of a sentence; None where it can."""

    def toolchain(self, device: str) -> str:
        """The toolchain that holds the tool for `device`."""

    def command(self, job: QuantizeJob) -> Command:
        """The command that reads the job's source and writes its target."""

    def substitutions(self, report: dict[str, object], log: str) -> list[dict[str, str]]:
        """Tensors that got another type than asked: [{tensor, wanted, used, why}].

        `report` is the worker's response ({} for a program), `log` what the command printed.
        """
