"""What a recommendation is made of, and the document that `deployer recommend --json` prints.

Latencies are milliseconds, memory bytes, rates per second, shares 0 to 1.
"""

from __future__ import annotations

from typing import Any, Literal

from deployer.artifacts import Record
from deployer.comparison import Estimate
from deployer.recipe.environment import Environment

SCHEMA_VERSION = 1
GIB = 1 << 30
USABLE_MEMORY = 0.9
"""Share of the memory that a server may take; the rest is the system's, as vLLM leaves a GPU."""
Basis = Literal["measured", "scaled", "estimated"]
"""measured: as it stands in the comparison. scaled: measured, then multiplied by a stated factor.

estimated: computed from bandwidth and capacity, nothing of it measured. The last two are told to
people as ESTIMATE.
"""
Kind = Literal[
    "not-runnable", "not-measured", "memory", "quality", "slo", "throughput", "dominated", "cost",
    "tie",
]  # fmt: skip
"""Why a format was not chosen. The last three passed every limit, and another one is better."""


def number(value: float) -> str:
    """A figure as people read it: four digits, and thousands whole with a comma."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


class Figure(Record):
    """A figure in the environment, how it was got (`how`: the arithmetic), on what it stands.

    `values` is one figure a trial, so that two figures of interleaved trials can be compared.
    """

    basis: Basis
    value: Estimate
    how: str

    @property
    def mean(self) -> float:
        return self.value.mean

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval, the mean where there is none."""
        return self.value.mean if self.value.high is None else self.value.high


class Outlook(Record):
    """What serving a format would be in the environment, with `users` requests under way.

    `output` is tokens per second of all of them: with a load of requests per second what the
    machine can do within its objectives, with users what these draw. `memory_there` is what a
    server may take.
    """

    users: float
    memory: Figure
    memory_there: float
    ttft_p95_ms: Figure
    tpot_p95_ms: Figure
    e2e_p95_ms: Figure
    output: Figure


class Miss(Record):
    """A limit that is not kept; `excess` is how many times over it the figure is, above 1.

    It is None where the figure is not known, or nothing of it is there at all.
    """

    kind: Kind
    reason: str
    excess: float | None


class Prospect(Record):
    """A format that was measured and runs in the environment, and the limits it would miss."""

    name: str
    engine: str
    scheme: str
    weights_bytes: int
    bits_per_weight: float
    perplexity_ratio: float | None
    outlook: Outlook
    cost: float
    misses: tuple[Miss, ...] = ()


class RuledOut(Record):
    """A format that was not chosen, and one reason: the first that holds in the order of Kind."""

    name: str
    kind: Kind
    reason: str
    misses: tuple[Miss, ...] = ()


class Spare(Record):
    """What a choice leaves free: `share` of a limit that is not used; `what` has the figures."""

    of: str
    share: float
    what: str


class Doubt(Record):
    """Something that makes the answer less sure; a grave one alone makes the confidence low."""

    reason: str
    grave: bool = False


class Recommendation(Record):
    """The answer for one environment: `chosen` is None where no format keeps every limit.

    `decided` says what put the chosen format before the runner-up. `cost_how` is the arithmetic
    of the cost of a million output tokens, `basis` on what the figures stand, in words.
    """

    schema_version: int = SCHEMA_VERSION
    environment: Environment
    comparison: str
    model: dict[str, Any]
    chosen: Prospect | None
    runner_up: Prospect | None
    decided: str
    cost_how: str
    headroom: tuple[Spare, ...]
    confidence: Literal["high", "medium", "low"] | None
    doubts: tuple[Doubt, ...]
    ruled_out: tuple[RuledOut, ...]
    basis: tuple[str, ...]
