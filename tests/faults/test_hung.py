"""Processes that are stopped in mid-work, with the patience of a real deployment.

`tests/integration` has the same of llama.cpp's server, with a shorter patience.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from command_line import gone, home_beside
from deployed import SMALL, deployed, document

from deployer import serving
from deployer.artifacts import FOLDER, Bundle, Manifest
from deployer.engines.vllm import CPU
from deployer.home import Home
from deployer.recipe import Serve, Vllm
from deployer.serving import ServerRecord
from deployer.toolchains import provision

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def until(holds: Callable[[], object], seconds: float) -> float:
    """Wait until it holds; gives the seconds that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, "it did not come to that"
        time.sleep(0.1)
    return time.monotonic() - began


def ask(url: str, model: str, seconds: float = 60.0) -> httpx.Response:
    """What the capital of France is said to be; `seconds` without a byte end the wait."""
    message = {"role": "user", "content": "What is the capital city of France? Answer in one word."}
    body = {"model": model, "messages": [message], "max_tokens": 24, "temperature": 0}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=seconds, trust_env=False)


def test_a_gateway_that_hangs_is_ended_and_started_again(
    home: Home, demo_bundle: Bundle, tmp_path: Path
) -> None:
    own = home_beside(home, tmp_path / "home", "store", "bundles")
    server = {"bundle": str(demo_bundle.root), "serve": SMALL}
    wanted = document("hung", {"one": server}, [{"model": "chat", "to": {"one": 1}}])
    with deployed(own, tmp_path, wanted) as running:
        before, engine = running.record, running.server("one")
        assert before.gateway_pid and engine
        assert ask(running.url, "chat").status_code == 200
        os.kill(before.gateway_pid, signal.SIGSTOP)
        stopped = time.monotonic()
        noticed = until(lambda: running.record.state == "degraded", 20)
        with pytest.raises(httpx.ReadTimeout):
            ask(running.url, "chat", seconds=1.0)
        # The port is open all the time: who comes now waits for the next gateway.
        answer = ask(running.url, "chat")
        answered = time.monotonic() - stopped
        until(lambda: running.record.state == "ready", 20)
        after, same = running.record, running.server("one")
        print(f"\ndegraded after {noticed:.1f} s, answered again after {answered:.1f} s")
        assert answer.status_code == 200 and "Paris" in answer.text
        assert 25 < answered < 45
        assert gone(before.gateway_pid)
        assert after.gateway_restarts == 1 and after.gateway_pid != before.gateway_pid
        assert after.servers == before.servers
        assert same and (same.engine_pid, same.restarts) == (engine.engine_pid, 0)


def test_vllm_that_is_stopped_is_ended_whole_and_started_again(
    home: Home, demo_checkpoint: Path, tmp_path: Path
) -> None:
    provision.ensure(CPU, home)
    manifest = Manifest(
        name="demo", digest="0", engine="vllm", weights=FOLDER, size_bytes=0, bits_per_weight=16.0,
        files=(), recipe={}, serve={}, source={}, quantization={"kv_bytes_per_token": 23040},
        quality={}, parity={}, tools={}, created_by="test",
    )  # fmt: skip
    own = home_beside(home, tmp_path / "home")
    serve = Serve(port=0, context=256, parallel=2, threads=1, vllm=Vllm(eager=True))

    def record() -> ServerRecord:
        return serving.status(own)[0]

    first = serving.start(Bundle(demo_checkpoint, manifest), serve, own, device="cpu", detach=True)
    try:
        assert first.engine_pid is not None
        assert "Paris" in ask(first.endpoint, "demo").text
        main = psutil.Process(first.engine_pid)
        processes = [main, *main.children(recursive=True)]
        assert len(processes) > 1, "the engine proper has a process of its own"
        assert {os.getpgid(each.pid) for each in processes} == {first.engine_pid}
        os.killpg(first.engine_pid, signal.SIGSTOP)
        stopped = time.monotonic()
        until(lambda: record().restarts == 1, 180)
        found = time.monotonic() - stopped
        assert all(gone(each.pid) for each in processes)
        until(lambda: record().state == "ready", 300)
        print(f"\nfound after {found:.1f} s, ready again after {time.monotonic() - stopped:.1f} s")
        assert record().last_cause == "hung"
        assert "Paris" in ask(record().endpoint, "demo").text
    finally:
        serving.stop(own, first.name)
