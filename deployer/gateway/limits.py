"""What each key may use: requests and tokens in a minute, and requests at once. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from deployer.gateway.keys import Key

MINUTE = 60.0
_MOMENT = 1e-6
"""Seconds that nobody is sent away for: they may come from the rounding of sums."""
_TRY_AGAIN = 1.0
"""Seconds until another try, where only the end of another request can help."""


@dataclass
class Bucket:
    """Holds at most `limit` drops and gains as many in a minute; it may be drained below 0.

    So a key that was quiet for a minute may use a minute's worth at once, and in any time of t
    seconds at most limit x (1 + t / 60).
    """

    limit: int
    at: float
    level: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = float(self.limit)

    def fill(self, limit: int, now: float) -> None:
        """Add what came since the last time; `limit` may be another one from now on."""
        gained = max(0.0, now - self.at) * self.limit / MINUTE
        self.level = min(float(limit), self.level + gained)
        self.limit, self.at = limit, now

    def wait(self, wanted: float) -> float:
        """Seconds until the level is at least `wanted`, 0.0 where it is."""
        return max(0.0, (wanted - self.level) * MINUTE / self.limit)


@dataclass
class _Use:
    running: int = 0
    requests: Bucket | None = None
    tokens: Bucket | None = None


class Limits:
    """Counts what keys use. `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    def admit(self, key: Key) -> float | None:
        """Let one request in (None), or tell after how many seconds to try again (above 0).

        Every request that was let in must be finished, once.
        """
        now = self._clock()
        use = self._uses.setdefault(key.id, _Use())
        use.requests = _filled(use.requests, key.requests_per_minute, now)
        use.tokens = _filled(use.tokens, key.tokens_per_minute, now)
        wait = max(
            use.requests.wait(1.0) if use.requests else 0.0,
            # What a request will use is not known before: it needs credit, not enough of it.
            use.tokens.wait(1.0) if use.tokens else 0.0,
            _TRY_AGAIN if key.concurrent is not None and use.running >= key.concurrent else 0.0,
        )
        if wait > _MOMENT:
            return wait
        use.running += 1
        if use.requests:
            use.requests.level -= 1.0
        return None

    def finish(self, key: Key, tokens: int) -> None:
        """End a request that was let in; `tokens` are those of its prompt and its answer.

        They may be more than is left: then the key waits until the debt is paid.
        """
        use = self._uses.get(key.id)
        if use is None:
            return
        use.running = max(0, use.running - 1)
        if use.tokens:
            use.tokens.fill(use.tokens.limit, self._clock())
            use.tokens.level -= tokens

    def keep(self, ids: frozenset[str]) -> None:
        """Forget the keys that are no more and have nothing running."""
        self._uses = {id: use for id, use in self._uses.items() if id in ids or use.running}


def _filled(bucket: Bucket | None, limit: int | None, now: float) -> Bucket | None:
    if limit is None:
        return None
    bucket = bucket or Bucket(limit, now)
    bucket.fill(limit, now)
    return bucket
