"""What a task gives: a score for each item, their mean, and how far chance may have moved it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from deployer.tasks.intervals import mean_interval

ANSWER_KEPT = 2000
"""Characters of an answer that are kept."""


@dataclass(frozen=True)
class Item:
    """One item: its score (0 to 1 where it passes or fails), why, and what the model said."""

    id: str
    score: float
    detail: str = ""
    answer: str = ""


@dataclass(frozen=True)
class TaskResult:
    """A task's outcome. `value` is the mean score of `count` items, `low` and `high` its 95 %
    interval; `settings` say how it was asked, `seconds` how long it took."""

    name: str
    metric: str
    value: float
    low: float
    high: float
    count: int
    items: tuple[Item, ...] = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def of(
        cls,
        name: str,
        metric: str,
        items: tuple[Item, ...],
        settings: Mapping[str, Any],
        seconds: float,
    ) -> TaskResult:
        """Sum up the items; ValueError where there are none."""
        scores = [item.score for item in items]
        low, high = mean_interval(scores)
        value = sum(scores) / len(scores)
        return cls(name, metric, value, low, high, len(items), items, settings, round(seconds, 3))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
