"""Whether this worker itself was fast enough: how late its greenlets wake, how busy it is."""

from __future__ import annotations

import time
from collections import Counter

import gevent

TICK = 0.02
SECOND = 1.0


class Probe:
    """Samples the greenlet lag every 20 ms and the CPU use every second, while `active`."""

    def __init__(self) -> None:
        self.active = False
        self.lags: Counter[int] = Counter()
        self.cpu_percent_max = 0.0

    def run(self) -> None:
        """Measure until killed."""
        wall, cpu, counted = time.monotonic(), time.process_time(), self.active
        while True:
            before = time.monotonic()
            gevent.sleep(TICK)
            now = time.monotonic()
            if self.active:
                self.lags[round((now - before - TICK) * 10_000)] += 1
            if now - wall >= SECOND:
                used = time.process_time()
                if counted and self.active:
                    self.cpu_percent_max = max(
                        self.cpu_percent_max, 100 * (used - cpu) / (now - wall)
                    )
                wall, cpu, counted = now, used, self.active

    def lag_ms(self, percent: float) -> float | None:
        """A percentile of the lag, to 0.1 ms; None where nothing was sampled."""
        rank = sum(self.lags.values()) * percent / 100
        for lag in sorted(self.lags):
            rank -= self.lags[lag]
            if rank <= 0:
                return lag / 10
        return None
