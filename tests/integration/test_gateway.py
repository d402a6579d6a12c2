"""The gateway's process in front of the real llama.cpp server, which no supervisor of ours hides.

The table is written by hand, so what happens between engine and client is the gateway's alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import certificate_of, make_certificate
from gateway_in_process import table, upstream

from deployer import serving
from deployer.artifacts import Bundle
from deployer.durable import write_atomically
from deployer.home import Home
from deployer.process import clean_environment
from deployer.recipe import Serve
from deployer.serving import ServerRecord

pytestmark = pytest.mark.integration

CLOSED = ("/tokenize", "/slots", "/props", "/completion", "/infill", "/lora-adapters")
"""Paths that llama.cpp has and the gateway does not."""
SLOTS = 2


@dataclass
class Process:
    """A gateway on `port`; `table` writes what it goes by."""

    folder: Path
    port: int
    popen: subprocess.Popen[bytes]

    def client(self, **more: Any) -> httpx.Client:
        url = f"http://127.0.0.1:{self.port}"
        return httpx.Client(base_url=url, trust_env=False, timeout=60, **more)

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        return [event for line in lines if (event := json.loads(line))["event"] == name]

    def write(self, url: str, server: dict[str, Any] | None = None, **gateway: Any) -> None:
        """Write the table, as a supervisor does."""
        told = table({"demo": upstream("demo", url, **(server or {}))}, gateway)
        write_atomically(self.folder / "table.json", told.model_dump_json())


@contextlib.contextmanager
def running(folder: Path, url: str, **gateway: Any) -> Iterator[Process]:
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, number = listening.getsockname()[1], listening.fileno()
        told = table({"demo": upstream("demo", url, slots=SLOTS)}, gateway)
        (folder / "table.json").write_text(told.model_dump_json())
        with (folder / "gateway.log").open("wb") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", "deployer.gateway", str(folder), "--fd", str(number)],
                env=clean_environment(), pass_fds=[number], stderr=log,
            )  # fmt: skip
    process = Process(folder, port, popen)
    try:
        await_(lambda: _listens(port), 20)
        yield process
        assert (folder / "gateway.log").read_text() == ""
    finally:
        popen.kill()
        popen.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def await_(holds: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def engine(
    home: Home, demo_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerRecord]:
    """The demo model, served; its supervisor starts it again when a test kills it."""
    own = Home(tmp_path_factory.mktemp("gateway") / "home")
    own.root.mkdir()
    (own.root / "toolchains").symlink_to(home.toolchains)
    settings = Serve(server="xllamacpp", port=0, context=512, parallel=SLOTS, threads=1)
    yield serving.start(demo_bundle, settings, own, name="demo", detach=True)
    serving.stop(own, "demo")


@pytest.fixture(scope="module")
def model(engine: ServerRecord) -> str:
    answer = httpx.get(f"{engine.endpoint}/v1/models", trust_env=False)
    return str(answer.json()["data"][0]["id"])


@pytest.fixture(scope="module")
def shared(
    engine: ServerRecord, model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("shared"), engine.endpoint) as process:
        process.write(engine.endpoint, {"model": model, "slots": SLOTS})
        yield process


def request(content: str, tokens: int, **more: Any) -> dict[str, Any]:
    return {
        "model": "chat", "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more,
    }  # fmt: skip


@dataclass
class Stream:
    """What a stream brought; `first` is set by its first word."""

    text: str = ""
    done: bool = False
    error: dict[str, Any] | None = None
    usage: dict[str, int] | None = None
    status: int = 0
    broken: str = ""
    first: threading.Event = field(default_factory=threading.Event)

    def read(self, client: httpx.Client, body: dict[str, Any]) -> Stream:
        body = {**body, "stream": True}
        try:
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                self.status = answer.status_code
                for line in answer.iter_lines():
                    self._take(line)
        except httpx.HTTPError as error:
            self.broken = repr(error)
        self.first.set()
        return self

    def _take(self, line: str) -> None:
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            self.done = True
        if not line.startswith("data: {"):
            return
        event = json.loads(data)
        self.error = event.get("error")
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices", []):
            self.text += choice["delta"].get("content") or ""
        if self.text:
            self.first.set()


def in_background(client: httpx.Client, body: dict[str, Any]) -> tuple[Stream, threading.Thread]:
    stream = Stream()
    thread = threading.Thread(target=stream.read, args=(client, body), daemon=True)
    thread.start()
    return stream, thread


def running_at(engine: ServerRecord) -> float:
    text = httpx.get(f"{engine.endpoint}/metrics", trust_env=False, timeout=30).text
    lines = [line for line in text.splitlines() if line.startswith("llamacpp:requests_processing ")]
    return float(lines[0].split()[1])


def test_answers_are_the_engines_own(engine: ServerRecord, model: str, shared: Process) -> None:
    body = request("Name three colours.", 16)
    with httpx.Client(base_url=engine.endpoint, trust_env=False, timeout=60) as direct:
        plain = direct.post("/v1/chat/completions", json={**body, "model": model}).json()
    with shared.client() as client:
        answer = client.post("/v1/chat/completions", json=body)
        text = answer.json()["choices"][0]["message"]["content"]
        assert text == plain["choices"][0]["message"]["content"]
        assert answer.headers["x-deployer-server"] == "demo"
        bare, counted = (
            Stream().read(client, {**body, "stream_options": {"include_usage": asked}})
            for asked in (False, True)
        )
        for stream in (bare, counted):
            assert (stream.text, stream.done, stream.error) == (text, True, None)
        assert bare.usage is None
        assert counted.usage is not None
        assert counted.usage["completion_tokens"] == 16
        assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["chat"]
        text = client.get("/metrics").text
    assert 'deployer_tokens_total{direction="output",route="chat",server="demo"} 48.0' in text


def test_many_short_streams_one_after_another_are_all_answered(shared: Process) -> None:
    """llama.cpp ends connections without saying so; no request of ours may meet such an end."""
    with shared.client() as client:
        for number in range(80):
            asked = request(f"{number}: hello", 2, stream=True)
            answer = client.post("/v1/chat/completions", json=asked)
            assert answer.status_code == 200, answer.text
            assert answer.text.endswith("data: [DONE]\n\n")


def test_what_else_the_engine_offers_is_out_of_reach(engine: ServerRecord, shared: Process) -> None:
    with shared.client() as client:
        for path in CLOSED:
            for method in ("GET", "POST"):
                assert client.request(method, path, json={}).status_code == 404
        assert "llamacpp:" not in client.get("/health").text
        answer = client.post("/v1/embeddings", json={"model": "chat", "input": "x"})
        assert answer.status_code == 404  # this engine was not started for it
        assert answer.json()["error"]["code"] == "not_offered"
    assert httpx.get(f"{engine.endpoint}/slots", trust_env=False).status_code == 200


def test_a_prompt_beyond_the_context_is_refused_and_never_cut(shared: Process) -> None:
    with shared.client() as client:
        for stream in (False, True):
            body = request("word " * 600, 4, stream=stream)
            answer = client.post("/v1/chat/completions", json=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")


def test_a_client_that_leaves_frees_its_slot(engine: ServerRecord, shared: Process) -> None:
    with shared.client() as client:
        body = request("Tell a long story.", 400, stream=True)
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()  # held: without it httpx would close the connection
            next(lines)
            await_(lambda: running_at(engine) == 1, 5)
        await_(lambda: running_at(engine) == 0, 5)


def test_beyond_slots_and_queue_is_429(engine: ServerRecord, model: str, shared: Process) -> None:
    few = {"model": model, "slots": 1}
    shared.write(engine.endpoint, few, max_waiting=0)
    with shared.client() as client:
        await_(lambda: json.loads(client.get("/health").text)["status"] == "ok")
        time.sleep(0.5)  # the gateway looks for a new table every 0.2 s
        stream, thread = in_background(client, request("Count.", 100))
        assert stream.first.wait(30)
        answer = client.post("/v1/chat/completions", json=request("Hi", 1))
        assert (answer.status_code, int(answer.headers["retry-after"]) >= 1) == (429, True)
        thread.join(60)
        assert stream.done
    shared.write(engine.endpoint, {"model": model, "slots": SLOTS})
    time.sleep(0.5)


def test_an_engine_killed_in_mid_stream_is_no_end(engine: ServerRecord, shared: Process) -> None:
    """The client sees an error; who comes next waits until the engine is back, and is served."""
    record = _now(engine)
    with shared.client() as client, shared.client() as other:
        stream, thread = in_background(client, request("Tell a long story.", 400))
        assert stream.first.wait(30)
        assert record.engine_pid is not None
        os.kill(record.engine_pid, signal.SIGKILL)
        answer = other.post("/v1/chat/completions", json=request("Hi", 2))
        thread.join(30)
        assert (stream.status, stream.done, stream.broken) == (200, False, "")
        assert stream.error is not None
        assert stream.error["type"] == "server_error"
        assert answer.status_code in (200, 502)  # 502: it was at the engine already
        last = other.post("/v1/chat/completions", json=request("Hi", 2))
        assert last.status_code == 200


def _now(engine: ServerRecord) -> ServerRecord:
    """The record as it is now: after another test's kill the engine is another process."""
    file = Path(engine.log).with_name("state.json")
    return ServerRecord.model_validate_json(file.read_bytes())


def test_a_drain_finishes_streams_and_takes_no_new_ones(
    engine: ServerRecord, model: str, tmp_path: Path
) -> None:
    with running(tmp_path, engine.endpoint) as process, process.client() as client:
        process.write(engine.endpoint, {"model": model})
        time.sleep(0.5)
        with process.client() as idle:
            assert idle.get("/health").status_code == 200
            stream, thread = in_background(client, request("Tell a story.", 60))
            assert stream.first.wait(30)
            process.popen.send_signal(signal.SIGTERM)
            await_(lambda: not _listens(process.port), 5)
            assert process.popen.poll() is None
            told = idle.get("/health")  # on the connection that it has kept
            assert (told.status_code, told.headers["connection"]) == (503, "close")
        thread.join(60)
        assert (stream.done, stream.error, stream.broken) == (True, None, "")
        assert process.popen.wait(10) == 0
        assert [e["event"] for e in process.events("gateway_stopped")] == ["gateway_stopped"]


def test_a_second_signal_ends_streams_with_an_error(
    engine: ServerRecord, model: str, tmp_path: Path
) -> None:
    with running(tmp_path, engine.endpoint) as process, process.client() as client:
        process.write(engine.endpoint, {"model": model})
        time.sleep(0.5)
        stream, thread = in_background(client, request("Tell a story.", 400))
        assert stream.first.wait(30)
        process.popen.send_signal(signal.SIGTERM)
        await_(lambda: not _listens(process.port), 5)
        process.popen.send_signal(signal.SIGTERM)
        told = time.monotonic()
        assert process.popen.wait(10) == 0
        assert time.monotonic() - told < 3
        thread.join(10)
        assert (stream.done, (stream.error or {}).get("code")) == (False, "draining")
        await_(lambda: running_at(engine) == 0, 5)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_takes_a_new_certificate_and_refuses_a_bad_one(tmp_path: Path) -> None:
    make_certificate(tmp_path, "first")
    files = {"certificate": str(tmp_path / "cert.pem"), "private_key": str(tmp_path / "key.pem")}
    with running(tmp_path / "gateway", "http://127.0.0.1:9", **files) as process:
        first = certificate_of(process.port)
        context = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        url = f"https://127.0.0.1:{process.port}/v1/models"
        assert httpx.get(url, verify=context, trust_env=False).status_code == 200
        with pytest.raises(ssl.SSLError):
            certificate_of(process.port, ssl.TLSVersion.TLSv1_1)
        (tmp_path / "cert.pem").write_text("no certificate")
        await_(lambda: process.events("certificate_refused"))
        assert certificate_of(process.port) == first
        make_certificate(tmp_path, "second")
        await_(lambda: certificate_of(process.port) != first)
        assert process.events("certificate_applied")
        (other := tmp_path / "other").mkdir()
        make_certificate(other, "third")
        second = certificate_of(process.port)
        process.write("http://127.0.0.1:9", **{name: str(other / Path(file).name)
                                               for name, file in files.items()})  # fmt: skip
        await_(lambda: certificate_of(process.port) != second)


def test_what_cannot_be_served_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deployer.gateway", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, "table.json" in ended.stderr) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = table({"a": "http://127.0.0.1:9"}).model_dump()
        told["gateway"]["port"] = taken.getsockname()[1]
        (tmp_path / "table.json").write_text(json.dumps(told))
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, "in use" in ended.stderr) == (2, True)
