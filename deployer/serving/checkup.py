"""What looks after one running engine: its memory, logs and life, and how busy it is."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable

from deployer.engine_metrics import EngineMetrics
from deployer.serving import causes
from deployer.serving.causes import Cause
from deployer.serving.engine_log import EngineLog, cut
from deployer.serving.health import Effort, Reading, Vitals, read
from deployer.serving.memory import held_beyond
from deployer.serving.readiness import QUICK, Endpoint, NotReady, answer_one_token
from deployer.serving.spec import Spec
from deployer.serving.state import Load, ServerFolder

RATE_WINDOW = 60.0
"""Seconds over which output tokens are counted: llama.cpp counts them when an answer has ended."""
_RETRY = 0.5


class Checkup:
    """Looks after the engine with process `pid` until `end`; `verdict` says why it must go.

    It never signals the engine itself: that is for the thread that started it.
    """

    def __init__(
        self, spec: Spec, endpoint: Endpoint, folder: ServerFolder, log: EngineLog, pid: int
    ) -> None:
        self.verdict: Cause | None = None
        self._spec, self._patience = spec, spec.patience
        self._endpoint, self._folder, self._log, self._pid = endpoint, folder, log, pid
        self._rate = Rate()
        self._vitals: Vitals | None = None
        self._effort = Effort(pid)
        self._ended = threading.Event()

    def start(self) -> None:
        limited = self._spec.memory_limit is not None
        for work in (self._look_after, *((self._watch_memory,) if limited else ())):
            threading.Thread(target=work, daemon=True).start()

    def became_ready(self) -> None:
        """From now on it must show life; before, the time for its start counts."""
        self._vitals = Vitals(self._patience)

    def end(self) -> None:
        self._ended.set()
        self._folder.load_file.unlink(missing_ok=True)

    def _look_after(self) -> None:
        while self.verdict is None and not self._ended.wait(self._patience.check_every):
            self._log.bound()
            cut(self._folder.supervisor_log, self._patience.log_bytes)
            self._check_life()

    def _watch_memory(self) -> None:
        """In a thread of its own: a question about life may take long."""
        limit = self._spec.memory_limit or 0
        while self.verdict is None and not self._ended.wait(self._patience.memory_every):
            held = held_beyond(self._pid, limit)
            if held is not None:
                self.verdict = causes.over_limit(held, limit)

    def _check_life(self) -> None:
        """Look for signs of life, and ask for a token where there are none."""
        vitals = self._vitals
        if vitals is None:
            return
        reading, works = self._look()
        while vitals.owes_token(reading, works) and not self._ended.is_set():
            if self._makes_token():
                vitals.proven()
                return
            reading, works = self._look()
            if vitals.hung(reading, works):
                self.verdict = causes.HUNG
                return

    def _look(self) -> tuple[Reading, bool]:
        """What it answers, and whether it has computed since the last look."""
        reading = read(self._endpoint, min(QUICK, self._patience.check_every))
        if reading.metrics is not None:
            self._tell(reading.metrics)
        return reading, self._effort.works()

    def _makes_token(self) -> bool:
        """Whether it makes a token within its share of `hung_after`."""
        deadline = time.monotonic() + self._patience.hung_after / 2
        while (left := deadline - time.monotonic()) > 0 and not self._ended.is_set():
            with contextlib.suppress(NotReady):
                answer_one_token(self._endpoint, left)
                return True
            self._ended.wait(min(_RETRY, max(0.0, deadline - time.monotonic())))
        return False

    def _tell(self, metrics: EngineMetrics) -> None:
        """Leave for `status` how busy the engine is."""
        if self._ended.is_set():
            return
        load = Load(
            at=time.monotonic(),
            running=metrics.running,
            waiting=metrics.waiting,
            output_tokens_per_s=self._rate.of(metrics.output_tokens),
        )
        with contextlib.suppress(OSError):
            fresh = self._folder.load_file.with_suffix(".new")
            fresh.write_text(json.dumps(load.as_json()), encoding="utf-8")
            fresh.replace(self._folder.load_file)


class Rate:
    """How fast a counter grew over the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque()

    def of(self, count: float | None) -> float | None:
        """Its growth a second, None until it has been seen twice."""
        if count is None:
            return None
        now = self._clock()
        while len(self._seen) > 1 and now - self._seen[0][0] > RATE_WINDOW:
            self._seen.popleft()
        self._seen.append((now, count))
        then, before = self._seen[0]
        return (count - before) / (now - then) if now > then else None
