"""Gates of a load test: "ttft_p95_ms <= 300", "goodput >= 0.95". Read strictly, never evaluated.

A gate is NAME OPERATOR NUMBER. The names are those of `NAMES`; milliseconds for what ends in _ms,
shares from 0 to 1, tokens and requests per second.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

LATENCIES = ("ttft", "ttfo", "tpot", "icl", "e2e", "e2e_from_schedule", "queue", "connect")
POINTS = ("mean", "p50", "p90", "p95", "p99")
FIGURES = ("goodput", "error_rate", "output_tokens_per_s", "requests_per_s", "cached_share")
NAMES = (*FIGURES, *(f"{name}_{point}_ms" for name in LATENCIES for point in POINTS))
SHARES = ("goodput", "error_rate", "cached_share")
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_GATE = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(<=|>=|<|>)\s*([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*")


@dataclass(frozen=True)
class Expression:
    """One gate; `text` is its one spelling, and `upper` says that it limits from above."""

    name: str
    sign: str
    limit: float

    @property
    def text(self) -> str:
        return f"{self.name} {self.sign} {self.limit:.12g}"

    @property
    def upper(self) -> bool:
        return self.sign.startswith("<")

    def met_by(self, value: float) -> bool:
        return OPERATORS[self.sign](value, self.limit)


def parse(text: str) -> Expression:
    """Read a gate; ValueError says what is wrong with it."""
    found = _GATE.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no gate; write it like ttft_p95_ms <= 300")
    name, sign, limit = found[1], found[2], float(found[3])
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        told = f"did you mean {near[0]}?" if near else f"for example {NAMES[0]}, ttft_p95_ms"
        raise ValueError(f"a gate knows no {name!r}; {told}")
    if name in SHARES and limit > 1:
        raise ValueError(f"{name} is a share from 0 to 1, not {limit:g}")
    return Expression(name, sign, limit)
