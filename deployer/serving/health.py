"""Whether an engine that was ready still lives. A saturated one is not a dead one.

An engine under load may not come to answer a health request: llama.cpp answers each stream with
a thread of its own, and has a few of them. So it lives when it answers and has nothing to do, or
when it computes. What is stopped, deadlocked or waits for nothing computes nothing.
"""

from __future__ import annotations

import re
import time

import httpx
import psutil

from deployer.serving.readiness import Endpoint

WORKING = 0.02
"""Processor time over time, of one core, below which an engine with requests does not compute."""
_REQUESTS = re.compile(
    r"^(?:llamacpp:requests_(?:processing|deferred)|vllm:num_requests_(?:running|waiting))"
    r"(?:\{[^}]*\})? (\S+)",
    re.MULTILINE,
)


class Pulse:
    """Asks one engine, process `pid`, whether it lives."""

    def __init__(self, endpoint: Endpoint, pid: int) -> None:
        self._endpoint = endpoint
        self._pid = pid
        self._asked, self._used = time.monotonic(), processor_seconds(pid)

    def beats(self) -> bool:
        """Whether it answers and has nothing to do, or has computed since this was last asked."""
        now, used = time.monotonic(), processor_seconds(self._pid)
        works = used - self._used > WORKING * (now - self._asked)
        self._asked, self._used = now, used
        return works or self._is_idle()

    def _is_idle(self) -> bool:
        """Whether it says so; False where it does not answer or has requests."""
        try:
            with self._endpoint.client() as client:
                answer = client.get(self._endpoint.health or "/v1/models")
                if answer.status_code != 200:
                    return False
                if self._endpoint.metrics is None:
                    return True
                counts = _REQUESTS.findall(client.get(self._endpoint.metrics).text)
        except httpx.HTTPError:
            return False
        return all(float(count) == 0 for count in counts)


def processor_seconds(pid: int) -> float:
    """Processor time of a process and those it started, in seconds; 0 once it is gone."""
    total = 0.0
    try:
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            times = member.cpu_times()
            total += times.user + times.system
    except psutil.Error:
        pass
    return total
