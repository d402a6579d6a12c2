"""Growing pauses between attempts at the same thing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Pauses:
    """`first` seconds, then twice as long each time, `longest` at most; short again after `good`.

    All in seconds; `good` is how long the thing must have gone well.
    """

    first: float = 1.0
    longest: float = 60.0
    good: float = 60.0
    failures: int = 0

    def after(self, went_well: float) -> float:
        """The pause before the next attempt, when this one went well for `went_well` seconds."""
        if went_well >= self.good:
            self.failures = 0
        pause = min(self.longest, self.first * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return pause
