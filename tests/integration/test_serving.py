"""A real bundle, served: the prebuilt native server with the demo model."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil
import pytest

from deployer import serving
from deployer.artifacts import Bundle, Manifest
from deployer.errors import PlanError, ServerError, ServerExited
from deployer.home import Home
from deployer.machine import available_memory
from deployer.process import Child
from deployer.recipe import Serve
from deployer.serving import ServerRecord
from deployer.serving.spec import Patience
from deployer.serving.state import ServerFolder

pytestmark = pytest.mark.integration

QUESTION = "What is the capital city of France? Answer in one word."


@pytest.fixture
def bundle(demo_gguf: Path) -> Bundle:
    manifest = Manifest(
        name="demo", digest="0", engine="llama.cpp", weights=demo_gguf.name,
        size_bytes=demo_gguf.stat().st_size, bits_per_weight=16.0, files=(), recipe={}, serve={},
        source={}, quantization={"kv_bytes_per_token": 23040}, quality={}, parity={}, tools={},
        created_by="test",
    )  # fmt: skip
    return Bundle(demo_gguf.parent, manifest)


def serve_settings(**changes: object) -> Serve:
    values = {"server": "xllamacpp", "port": 0, "context": 512, "parallel": 4, "threads": 1}
    return Serve(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def started(own_home: Home, bundle: Bundle) -> Iterator[Callable[..., ServerRecord]]:
    """Start detached servers; all that still run at the end are stopped."""

    def start(name: str = "demo", **changes: object) -> ServerRecord:
        settings = serve_settings(**changes)
        return serving.start(bundle, settings, own_home, name=name, detach=True)

    yield start
    for record in serving.status(own_home):
        serving.stop(own_home, record.name)


@dataclass
class Stream:
    """What one streamed chat brought: its text, whether it came to its end, the usage."""

    text: str = ""
    done: bool = False
    usage: dict[str, int] | None = None
    error: str = ""


def stream_chat(
    endpoint: str, content: str, tokens: int, on_first: Callable[[], object] = lambda: None
) -> Stream:
    result = Stream()
    request = {
        "model": "demo", "stream": True, "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": content}], "max_tokens": tokens,
        "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
    try:
        with (
            httpx.Client(base_url=endpoint, timeout=300, trust_env=False) as client,
            client.stream("POST", "/v1/chat/completions", json=request) as response,
        ):
            for line in response.iter_lines():
                _take(line, result, on_first)
    except httpx.HTTPError as error:
        result.error = repr(error)
    return result


def _take(line: str, result: Stream, on_first: Callable[[], object]) -> None:
    if line == "data: [DONE]":
        result.done = True
    elif line.startswith("data: "):
        event = json.loads(line[6:])
        result.usage = event.get("usage") or result.usage
        for choice in event.get("choices", []):
            piece = choice["delta"].get("content") or ""
            if piece and not result.text:
                on_first()
            result.text += piece
    elif line.startswith("error"):
        result.error = line


def nothing_left(record: ServerRecord) -> bool:
    port = httpx.URL(record.endpoint).port
    assert port is not None
    with socket.socket() as probe:
        closed = probe.connect_ex(("127.0.0.1", port)) != 0
    return closed and not any(is_running(p) for p in (record.engine_pid, record.supervisor_pid))


def is_running(pid: int | None) -> bool:
    """A supervisor that ended stays a zombie of this process until it is waited for."""
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_serve_stream_status_logs_stop(
    own_home: Home, started: Callable[..., ServerRecord]
) -> None:
    record = started()
    shown = record.as_json()
    assert {"name", "endpoint", "supervisor_pid", "engine_pid", "bundle", "log"} <= set(shown)
    assert record.state == "ready"
    assert record.ready_seconds is not None

    stream = stream_chat(record.endpoint, QUESTION, 24)
    assert (stream.done, stream.error) == (True, "")
    assert "Paris" in stream.text
    assert stream.usage is not None
    assert stream.usage["completion_tokens"] == 24

    (status,) = serving.status(own_home)
    assert status.uptime_s is not None
    assert status.peak_rss_bytes is not None
    assert status.peak_rss_bytes > 100 << 20
    assert any("model loaded" in line for line in serving.logs(own_home, "demo", lines=200))
    assert len(list(serving.logs(own_home, "demo", lines=3))) == 3

    assert serving.stop(own_home, "demo").state == "stopped"
    assert serving.status(own_home) == []
    assert nothing_left(record)


def test_sixteen_concurrent_streams_and_the_metrics_they_leave(
    started: Callable[..., ServerRecord],
) -> None:
    record = started(parallel=8)
    with ThreadPoolExecutor(16) as pool:
        streams = list(
            pool.map(lambda n: stream_chat(record.endpoint, f"Count to {n}.", 24), range(16))
        )
    assert [s.error for s in streams] == [""] * 16
    assert all(s.done for s in streams)
    assert [s.usage and s.usage["completion_tokens"] for s in streams] == [24] * 16
    metrics = httpx.get(f"{record.endpoint}/metrics", trust_env=False).text
    counted = next(
        float(line.split()[1])
        for line in metrics.splitlines()
        if line.startswith("llamacpp:tokens_predicted_total ")
    )
    assert counted >= 16 * 24
    assert len(httpx.get(f"{record.endpoint}/slots", trust_env=False).json()) == 8


def test_sigterm_finishes_running_and_waiting_streams_and_refuses_new_ones(
    started: Callable[..., ServerRecord],
) -> None:
    """Six streams for four slots: two still wait when the signal comes."""
    record = started(drain_timeout=120)
    first_tokens = threading.Semaphore(0)
    with ThreadPoolExecutor(6) as pool:
        futures = [
            pool.submit(stream_chat, record.endpoint, f"Tell story {n}.", 64, first_tokens.release)
            for n in range(6)
        ]
        for _ in range(4):
            assert first_tokens.acquire(timeout=60)
        os.kill(record.supervisor_pid, signal.SIGTERM)
        refused_at = _wait_until_refused(record.endpoint)
        assert not all(future.done() for future in futures), "refused only after the end"
        streams = [future.result() for future in futures]
    assert refused_at < 2.0
    assert [(s.done, s.error) for s in streams] == [(True, "")] * 6
    assert [s.usage and s.usage["completion_tokens"] for s in streams] == [64] * 6
    deadline = time.monotonic() + 10
    while not nothing_left(record) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert nothing_left(record)


def _wait_until_refused(endpoint: str) -> float:
    started = time.monotonic()
    while time.monotonic() - started < 10:
        try:
            httpx.get(f"{endpoint}/health", trust_env=False, timeout=2)
        except httpx.HTTPError:
            return time.monotonic() - started
        time.sleep(0.02)
    raise AssertionError("new connections are still accepted")


def test_sigkill_of_the_supervisor_leaves_no_orphan(
    own_home: Home, started: Callable[..., ServerRecord]
) -> None:
    record = started()
    os.kill(record.supervisor_pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while not nothing_left(record) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert nothing_left(record)
    assert [r.state for r in serving.status(own_home)] == ["lost"]


def test_a_taken_port_names_its_holder_and_a_second_server_needs_another(
    own_home: Home, bundle: Bundle, started: Callable[..., ServerRecord]
) -> None:
    record = started()
    port = httpx.URL(record.endpoint).port
    with pytest.raises(ServerError, match=f"port {port} .* in use by pid {record.engine_pid}"):
        started(name="second", port=port)
    with pytest.raises(ServerError, match="a server named demo runs already"):
        started()
    second = started(name="second")
    assert {r.name for r in serving.status(own_home)} == {"demo", "second"}
    assert second.endpoint != record.endpoint


def test_a_port_taken_after_the_check_is_never_ready(
    own_home: Home, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        monkeypatch.setattr("deployer.serving.preflight.take_port", lambda _host, port: port)
        with pytest.raises(ServerError, match="somebody else took its port"):
            serving.start(bundle, serve_settings(port=port), own_home, detach=True)
    assert [r.state for r in serving.status(own_home)] == ["failed"]


def test_a_damaged_model_is_named(own_home: Home, bundle: Bundle, tmp_path: Path) -> None:
    cut = tmp_path / bundle.weights.name
    with bundle.weights.open("rb") as whole:
        cut.write_bytes(whole.read(10_000_000))
    with pytest.raises(ServerError, match="could not load the model") as caught:
        serving.start(Bundle(tmp_path, bundle.manifest), serve_settings(), own_home, detach=True)
    assert "verify" in caught.value.hint


def test_unknown_extra_arguments_are_named(own_home: Home, bundle: Bundle) -> None:
    settings = serve_settings(extra_args=("--nonsense",))
    with pytest.raises(ServerError, match="does not accept its arguments") as caught:
        serving.start(bundle, settings, own_home, detach=True)
    assert "--nonsense" in caught.value.message


HASTE = Patience(
    check_every=0.5, hung_after=3.0, idle_probe=1.0, stuck_after=3.0, memory_every=0.2,
    first_pause=0.2, longest_pause=0.4, limited=2,
)  # fmt: skip
"""Everything in seconds that takes up to minutes else."""


@pytest.fixture
def hasty(own_home: Home, bundle: Bundle) -> Iterator[Callable[..., ServerRecord]]:
    """Start a server whose supervisor has little patience; killed at the end if it still runs."""
    children: list[Child] = []

    def start(memory_limit: int | None = None, **changes: object) -> ServerRecord:
        spec = serving.prepare(bundle, serve_settings(**changes), own_home, name="demo")
        spec = replace(spec, patience=HASTE, memory_limit=memory_limit)
        folder = ServerFolder.of(own_home, "demo")
        children.append(serving.spawn_supervisor(spec, folder, outlive_us=False))
        return serving.await_ready(children[-1], folder, lambda _seconds: None)

    yield start
    for child in children:
        child.stop(grace=5.0)


def record_when(
    home: Home, holds: Callable[[ServerRecord], bool], seconds: float = 60.0
) -> ServerRecord:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        (record,) = serving.status(home, "demo")
        if holds(record):
            return record
        time.sleep(0.05)
    raise AssertionError(f"never happened; last: {record}")


def test_a_stopped_engine_is_found_killed_and_answers_again(
    own_home: Home, hasty: Callable[..., ServerRecord]
) -> None:
    first = hasty()
    assert first.engine_pid is not None
    time.sleep(3 * HASTE.idle_probe)
    assert serving.status(own_home)[0].restarts == 0, "an idle one is asked, and lives"
    stopped = time.monotonic()
    os.kill(first.engine_pid, signal.SIGSTOP)
    again = record_when(own_home, lambda r: r.restarts == 1 and r.state == "ready")
    print(f"stopped, found and ready again after {time.monotonic() - stopped:.1f} s")
    assert again.last_cause == "hung"
    assert not is_running(first.engine_pid)
    assert "Paris" in stream_chat(again.endpoint, QUESTION, 8).text


def test_a_killed_engine_cuts_streams_openly_and_is_started_again(
    own_home: Home, hasty: Callable[..., ServerRecord]
) -> None:
    first = hasty()
    assert first.engine_pid is not None
    pid = first.engine_pid
    stream = stream_chat(first.endpoint, "Tell a story.", 300, lambda: os.kill(pid, signal.SIGKILL))
    killed = time.monotonic()
    assert stream.text
    assert not stream.done, "no end that was none"
    assert "RemoteProtocolError" in stream.error or "ReadError" in stream.error
    again = record_when(own_home, lambda r: r.restarts == 1 and r.state == "ready")
    print(f"killed and ready again after {time.monotonic() - killed:.1f} s")
    assert again.last_cause == "killed"
    assert stream_chat(again.endpoint, QUESTION, 8).done


@pytest.mark.faults
def test_a_saturated_engine_is_left_alone(
    own_home: Home, hasty: Callable[..., ServerRecord]
) -> None:
    """Three times as many streams as slots, for longer than any patience lasts."""
    record = hasty(parallel=2)
    started = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        futures = [
            pool.submit(stream_chat, record.endpoint, f"Tell story {n}.", 100) for n in range(6)
        ]
        busy = record_when(own_home, lambda r: (r.running or 0) == 2 and (r.waiting or 0) > 0)
        streams = [future.result() for future in futures]
    print(f"saturated for {time.monotonic() - started:.1f} s")
    assert [(s.done, s.error) for s in streams] == [(True, "")] * 6
    now = record_when(own_home, lambda r: r.running == 0 and bool(r.output_tokens_per_s))
    assert (now.restarts, now.engine_pid) == (0, busy.engine_pid)


def test_a_second_sigterm_under_load_ends_it_at_once(
    own_home: Home, hasty: Callable[..., ServerRecord]
) -> None:
    record = hasty(drain_timeout=60)
    started = threading.Semaphore(0)
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(stream_chat, record.endpoint, f"Tell story {n}.", 400, started.release)
            for n in range(2)
        ]
        assert started.acquire(timeout=30)
        os.kill(record.supervisor_pid, signal.SIGTERM)
        record_when(own_home, lambda r: r.state == "draining")
        os.kill(record.supervisor_pid, signal.SIGTERM)
        ended = time.monotonic()
        assert not any(future.result().done for future in futures)
    while not nothing_left(record):
        assert time.monotonic() - ended < 5
        time.sleep(0.02)
    assert serving.status(own_home, "demo")[0].state == "stopped"


@pytest.mark.faults
def test_a_server_runs_on_its_cores_with_a_thread_for_each(
    hasty: Callable[..., ServerRecord],
) -> None:
    cpu = max(os.sched_getaffinity(0))
    record = hasty(cores=str(cpu), threads=None)
    assert record.engine_pid is not None
    tasks = Path(f"/proc/{record.engine_pid}/task")
    assert all(os.sched_getaffinity(int(task.name)) == {cpu} for task in tasks.iterdir())
    argv = psutil.Process(record.engine_pid).cmdline()
    assert argv[argv.index("--threads") + 1] == "1"


def test_a_server_over_its_memory_limit_at_the_start_is_not_repeated(
    own_home: Home, hasty: Callable[..., ServerRecord]
) -> None:
    with pytest.raises(ServerExited, match=r"it held \S+ GiB, and serve\.memory_limit_gib"):
        hasty(memory_limit=40 << 20)
    (record,) = serving.status(own_home)
    assert (record.state, record.last_cause) == ("failed", "over its memory limit")


def test_memory_that_others_were_promised_is_not_given_twice(
    own_home: Home, bundle: Bundle
) -> None:
    first = serving.prepare(bundle, serve_settings(), own_home)
    assert first.memory_bytes > bundle.manifest.size_bytes
    with pytest.raises(PlanError, match=r"\(\d+\.\d\d GiB more are promised to servers beside it"):
        serving.prepare(bundle, serve_settings(), own_home, reserved=available_memory())
