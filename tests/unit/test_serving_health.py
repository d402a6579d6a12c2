"""A saturated engine lives, a stopped one does not: a real server, and processor time as given."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from deployer.serving import health
from deployer.serving.health import Pulse
from deployer.serving.readiness import Endpoint

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
