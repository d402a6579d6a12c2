"""A figure and its target; and what a measurement needs: that others leave the machine alone."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

QUIET, QUIET_TIMEOUT = 0.15, 20.0
"""Others may use this share of the processor; seconds to wait for them before a measurement."""
Rates = Mapping[str, Mapping[int, list[float]]]
"""Contender -> number of streams -> output tokens per second, one of each round."""


@dataclass(frozen=True)
class Line:
    """One figure against its target; `met` compares with it from below or above.

    `valid` is false where others used the processor, so that the figure says nothing.
    """

    name: str
    bare: float | None
    deployer: float
    figure: float
    unit: str
    target: float
    at_least: bool = False
    valid: bool = True

    @property
    def met(self) -> bool:
        return self.figure >= self.target if self.at_least else self.figure <= self.target

    def row(self) -> tuple[str, ...]:
        sign = ">=" if self.at_least else "<="
        verdict = ("met" if self.met else "MISSED") if self.valid else "not valid: busy"
        alone = "" if self.bare is None else _shown(self.bare)
        shown = "" if self.bare is None else _shown(self.deployer)
        return (
            self.name, alone, shown, f"{self.figure:.3f} {self.unit}".strip(),
            f"{sign} {self.target:g}", verdict,
        )  # fmt: skip


def _shown(value: float) -> str:
    """A tenth is enough, but for what is small itself."""
    return f"{value:.1f}" if value >= 1 else f"{value:.3g}"


def rate_lines(rates: Rates, bare: str, valid: bool) -> list[Line]:
    """Every contender's output tokens per second against those of the one named `bare`."""
    lines = []
    for name in (name for name in rates if name != bare):
        for level in rates[bare]:
            alone = statistics.median(rates[bare][level])
            ours = statistics.median(rates[name][level])
            lines.append(
                Line(f"output tok/s, {level} streams, {name}", alone, ours, ours / alone, "x",
                     0.97, at_least=True, valid=valid)
            )  # fmt: skip
    return lines


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def wait_for_quiet() -> float:
    """Wait a while for the processor to be idle; gives the share of it that was busy last."""
    deadline = time.monotonic() + QUIET_TIMEOUT
    while (busy := psutil.cpu_percent(interval=1.0) / 100) > QUIET and time.monotonic() < deadline:
        pass
    return busy
