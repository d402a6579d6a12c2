"""A saturated engine lives, a stopped one does not: a real server, and processor time as given."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from deployer.engine_metrics import EngineMetrics
from deployer.serving import health
from deployer.serving.checkup import Rate
from deployer.serving.health import Pulse, Reading, Vitals
from deployer.serving.readiness import Endpoint
from deployer.serving.spec import Patience

IDLE = "llamacpp:requests_processing 0\nllamacpp:requests_deferred 0\n"
BUSY = "llamacpp:requests_processing 4\nllamacpp:requests_deferred 0\n"
VLLM = 'vllm:num_requests_running{engine="0"} 0.0\nvllm:num_requests_waiting{engine="0"} %s\n'
Ask = Callable[..., bool]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """ask(metrics, worked, ...): does an engine live that says and did this?"""
    answers: dict[str, tuple[int, str]] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            return

        def do_GET(self) -> None:
            status, text = answers[self.path]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def asked(
        metrics: str | None, worked: float = 0.0, status: int = 200, listens: bool = True
    ) -> bool:
        answers.update({"/health": (status, ""), "/metrics": (200, metrics or "")})
        port = server.server_port if listens else 1
        path = None if metrics is None else "/metrics"
        endpoint = Endpoint(f"http://127.0.0.1:{port}", port, "m", "/health", path)
        used = iter([10.0, 10.0 + worked])
        monkeypatch.setattr(health, "processor_seconds", lambda _pid: next(used))
        return Pulse(endpoint, 1).beats()

    yield asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("metrics", [IDLE, VLLM % "0.0", "", None])
def test_who_answers_and_has_nothing_to_do_lives(ask: Ask, metrics: str | None) -> None:
    assert ask(metrics)


@pytest.mark.parametrize("metrics", [BUSY, VLLM % "3.0"])
def test_who_has_requests_must_compute(ask: Ask, metrics: str) -> None:
    assert not ask(metrics)
    assert ask(metrics, worked=5.0)


def test_who_does_not_answer_lives_as_long_as_it_computes(ask: Ask) -> None:
    assert not ask(IDLE, listens=False)
    assert ask(IDLE, listens=False, worked=5.0)


def test_an_error_is_no_sign_of_life(ask: Ask) -> None:
    assert not ask(IDLE, status=503)


def test_processor_time_is_that_of_the_process_and_none_of_who_is_gone() -> None:
    before = health.processor_seconds(os.getpid())
    assert 0 < before < 1e6
    assert health.processor_seconds(2**22 + 1) == 0.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


PATIENCE = Patience(check_every=5, hung_after=20, idle_probe=30, stuck_after=300)
REST = Reading(answers=True, metrics=EngineMetrics(running=0, waiting=0, steps=1))
LOADED = Reading(answers=True, metrics=EngineMetrics(running=2, waiting=9, steps=1))
MUTE = Reading(answers=False)
NO_METRICS = Reading(answers=True)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def vitals(clock: Clock) -> Vitals:
    return Vitals(PATIENCE, clock)


def owed_after(
    vitals: Vitals, clock: Clock, reading: Reading, works: bool, seconds: float = 1000
) -> float | None:
    """Seconds until a token is owed, looked at every 5 s; None: never."""
    started = clock.now
    while clock.now - started <= seconds:
        if vitals.owes_token(reading, works):
            return clock.now - started
        clock.now += 5
    return None


@pytest.mark.parametrize("reading", [REST, NO_METRICS])
def test_who_rests_is_asked_from_time_to_time(
    vitals: Vitals, clock: Clock, reading: Reading
) -> None:
    assert owed_after(vitals, clock, reading, works=False) == 30
    vitals.proven()
    assert owed_after(vitals, clock, reading, works=False) == 30


@pytest.mark.parametrize("reading", [LOADED, MUTE])
def test_who_has_requests_or_does_not_answer_and_rests_is_asked_at_once(
    vitals: Vitals, clock: Clock, reading: Reading
) -> None:
    vitals.owes_token(LOADED, works=True)
    assert owed_after(vitals, clock, reading, works=False) == 0


@pytest.mark.parametrize("reading", [MUTE, NO_METRICS])
def test_who_computes_and_cannot_be_seen_further_is_believed(
    vitals: Vitals, clock: Clock, reading: Reading
) -> None:
    assert owed_after(vitals, clock, reading, works=True) is None


def test_who_computes_and_gets_nowhere_is_asked_at_last(vitals: Vitals, clock: Clock) -> None:
    assert owed_after(vitals, clock, LOADED, works=True) == 300


def test_who_moves_is_never_asked_however_busy(vitals: Vitals, clock: Clock) -> None:
    for step in range(1000):
        metrics = EngineMetrics(running=8, waiting=100, steps=float(step))
        assert not vitals.owes_token(Reading(answers=True, metrics=metrics), works=step % 2 == 0)
        clock.now += 5


def test_two_tokens_that_did_not_come_are_the_end(vitals: Vitals, clock: Clock) -> None:
    vitals.owes_token(MUTE, works=False)
    assert not vitals.hung(MUTE, worked=False)
    assert vitals.owes_token(MUTE, works=False)
    assert vitals.hung(MUTE, worked=False)


@pytest.mark.parametrize("sign", ["a token", "it computes", "its counters move", "it rests"])
def test_one_sign_of_life_forgives(vitals: Vitals, clock: Clock, sign: str) -> None:
    vitals.owes_token(LOADED, works=False)
    assert not vitals.hung(LOADED, worked=False)
    if sign == "a token":
        vitals.proven()
    elif sign == "it computes":
        assert not vitals.owes_token(LOADED, works=True)
    elif sign == "its counters move":
        moved = Reading(answers=True, metrics=EngineMetrics(running=2, waiting=9, steps=2))
        assert not vitals.hung(moved, worked=False)
    else:
        assert not vitals.owes_token(REST, works=False)
    assert not vitals.hung(MUTE, worked=False), "the count begins anew"


def test_a_slow_answer_of_who_computes_is_forgiven_but_not_for_ever(
    vitals: Vitals, clock: Clock
) -> None:
    vitals.owes_token(LOADED, works=True)
    for _ in range(10):
        assert not vitals.hung(LOADED, worked=True)
    clock.now += 300
    assert vitals.owes_token(LOADED, works=True)
    assert not vitals.hung(LOADED, worked=True)
    assert vitals.owes_token(LOADED, works=True)
    assert vitals.hung(LOADED, worked=True)


def test_a_rate_is_that_of_the_last_minute(clock: Clock) -> None:
    rate = Rate(clock)
    assert rate.of(None) is None
    assert rate.of(100) is None
    assert rate.of(100) is None, "no time has gone by"
    clock.now += 10
    assert rate.of(150) == 5
    for _ in range(30):
        clock.now += 10
        last = rate.of(150)
    assert last == 0
