"""When an engine that ended is started again, and when it is given up. Pure but for its clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from deployer.serving.causes import Cause
from deployer.serving.spec import Patience

_DOUBLINGS = 30


class Restarts:
    """Growing pauses for an engine that ends again and again.

    A first start that fails is not repeated. After that an engine may end as often as it comes
    up: the pauses grow to the longest one, and a good run makes them short again. What never comes
    up, or ends at its memory limit again and again, is given up.
    """

    def __init__(self, patience: Patience, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._ready_at: float | None = None
        self._served = False
        self._row = 0
        self._unready = 0
        self._limited = 0

    def became_ready(self) -> None:
        self._ready_at = self._clock()
        self._served = True
        self._unready = 0

    def pause(self, cause: Cause) -> float | None:
        """Seconds to wait before the next start, after an end for `cause`; None: give it up."""
        came_up, self._ready_at = self._ready_at, None
        if came_up is None:
            self._unready += 1
        elif self._clock() - came_up >= self._patience.good_run:
            self._row = self._limited = 0
        self._limited += cause.limited
        if not self._served or not cause.retry:
            return None
        if self._unready >= self._patience.attempts or self._limited >= self._patience.limited:
            return None
        doublings = min(self._row, _DOUBLINGS)
        self._row += 1
        doubled = math.ldexp(self._patience.first_pause, doublings)
        return min(self._patience.longest_pause, doubled)
