"""What a server did for a route in the last seconds, in bounded memory. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from deployer.gateway.outcome import Outcome
from deployer.metrics import percentile
from deployer.recipe.deployment import ServedObjectives

MOST = 500
"""Requests that are kept, or as many as are needed; of a busier route the last ones count."""
FAILED = frozenset({"upstream_error", "truncated", "timeout"})
"""The kinds of outcome that are the server's fault."""


class Window:
    """The requests of the last seconds that tell of the server, not of the client."""

    def __init__(self, objectives: ServedObjectives) -> None:
        self._objectives = objectives
        most = max(MOST, objectives.min_requests)
        self._seen: deque[tuple[float, Outcome]] = deque(maxlen=most)

    def add(self, outcome: Outcome, now: float) -> None:
        if outcome.kind == "ok" or outcome.kind in FAILED:
            self._seen.append((now, outcome))

    def clear(self) -> None:
        self._seen.clear()

    def missed(self, now: float) -> str | None:
        """Which objective is missed, in words; None where none is, or too little was seen."""
        objectives = self._objectives
        while self._seen and self._seen[0][0] < now - objectives.window:
            self._seen.popleft()
        if len(self._seen) < objectives.min_requests:
            return None
        return next(self._misses(), None)

    def _misses(self) -> Iterator[str]:
        objectives = self._objectives
        outcomes = [outcome for _, outcome in self._seen]
        failed = sum(outcome.kind in FAILED for outcome in outcomes) / len(outcomes)
        limit = objectives.max_error_rate
        if limit is not None and failed > limit:
            yield f"{failed:.1%} of requests failed, limit {limit:.1%}"
        good = [outcome for outcome in outcomes if outcome.kind == "ok"]
        times = (
            ("TTFT", objectives.ttft_p95_ms, [o.ttft for o in good if o.ttft is not None]),
            ("TPOT", objectives.tpot_p95_ms, [o.tpot for o in good if o.tpot is not None]),
        )
        for name, most, seconds in times:
            if most is None or len(seconds) < objectives.min_requests:
                continue
            if (p95 := percentile(seconds, 95) * 1000) > most:
                yield f"{name} p95 is {p95:.0f} ms, limit {most:g} ms"
