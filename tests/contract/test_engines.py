"""One suite over every server an engine offers: the same bundle, the same promises.

Toolchains that are missing are made first, so the first run compiles llama.cpp. Where no
llama-server is installed, the compiled one is put on PATH to stand in for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from deployer import serving
from deployer.artifacts import Bundle, Manifest
from deployer.engines import ENGINES, Facts, ModelToServe
from deployer.engines.llama_cpp import NATIVE, PYTHON, SERVERS, WHEEL
from deployer.home import Home
from deployer.process import which
from deployer.recipe import Serve
from deployer.toolchains import provision

KEYS = ("first-key", "second-key")
CONTEXT = 256
QUESTION = "What is the capital city of France? Answer in one word."


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("engine", ENGINES.values(), ids=lambda engine: engine.name)
def test_every_launch_keeps_the_promises_of_the_protocol(engine, server: str) -> None:
    serve = Serve(port=9, api_key_file="/secret/keys", context=100, parallel=1)
    model = ModelToServe(Path("/bundle/model.gguf"), "name")
    facts = Facts(cores=3, programs=frozenset(engine.programs))
    assert engine.choose(server, facts) == server
    launch = engine.launch(server, model, serve, facts)
    arguments = launch.command.arguments
    for flag, value in {
        "--model": "/bundle/model.gguf", "--alias": "name", "--host": "127.0.0.1", "--port": "9",
        "--threads": "3", "--ctx-size": "100", "--api-key-file": "/secret/keys",
    }.items():  # fmt: skip
        assert arguments[arguments.index(flag) + 1] == value
    assert launch.drains or launch.metrics, "nothing tells when it may be stopped"


@dataclass(frozen=True)
class Running:
    server: str
    record: serving.ServerRecord
    multiple_keys: bool

    def client(self, key: str | None = KEYS[0]) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(
            base_url=self.record.endpoint, headers=headers, timeout=120, trust_env=False
        )


@contextmanager
def serving_it(server: str, home: Home, weights: Path, folder: Path) -> Iterator[Running]:
    """Start a server in a home of its own and stop it; afterwards nothing may be left."""
    one_key = server == "llama-cpp-python"
    key_file = folder / "keys"
    key_file.write_text("# keys\n" + "\n".join(KEYS[:1] if one_key else KEYS) + "\n")
    key_file.chmod(0o600)
    serve = Serve(
        server=server, port=0, context=CONTEXT, parallel=2, threads=1, drain_timeout=120,
        api_key_file=str(key_file),
    )  # fmt: skip
    own_home = Home(folder / "home")
    own_home.root.mkdir()
    (own_home.root / "toolchains").symlink_to(home.toolchains)
    with pytest.MonkeyPatch.context() as patch:
        if server == "llama-server":
            patch.setenv("PATH", str(installed_llama_server(home)), prepend=os.pathsep)
        record = serving.start(bundle_of(weights), serve, own_home, detach=True)
    try:
        yield Running(server, record, not one_key)
    finally:
        for left in serving.status(own_home):
            serving.stop(own_home, left.name)
    assert not psutil.pid_exists(record.engine_pid)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{record.endpoint}/v1/models", trust_env=False)


TOOLCHAINS = {
    "source": NATIVE, "llama-server": NATIVE, "xllamacpp": WHEEL, "llama-cpp-python": PYTHON,
}  # fmt: skip


def installed_llama_server(home: Home) -> Path:
    """The folder of an installed llama-server; the compiled one stands in where there is none."""
    found = which("llama-server") or provision.ensure(NATIVE, home).program("llama-server")
    return found.parent


@pytest.fixture(scope="module", params=SERVERS)
def running(
    request: pytest.FixtureRequest,
    home: Home,
    demo_gguf: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    provision.ensure(TOOLCHAINS[request.param], home)
    folder = tmp_path_factory.mktemp(f"contract-{request.param}")
    with serving_it(request.param, home, demo_gguf, folder) as one:
        yield one


def bundle_of(weights: Path) -> Bundle:
    manifest = Manifest(
        name="demo", digest="0", engine="llama.cpp", weights=weights.name,
        size_bytes=weights.stat().st_size, bits_per_weight=16.0, files=(), recipe={}, serve={},
        source={}, quantization={}, quality={}, parity={}, tools={}, created_by="test",
    )  # fmt: skip
    return Bundle(weights.parent, manifest)


def chat(content: str, **options: object) -> dict[str, object]:
    messages = [{"role": "user", "content": content}]
    return {"model": "demo", "messages": messages, "temperature": 0, **options}


@pytest.mark.integration
def test_it_tells_the_capital_of_france(running: Running) -> None:
    with running.client() as client:
        answer = client.post(
            "/v1/chat/completions",
            json=chat(QUESTION, max_tokens=24),
        )
    assert answer.status_code == 200
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    assert answer.json()["usage"]["completion_tokens"] > 0


@pytest.mark.integration
def test_it_streams_to_the_end(running: Running) -> None:
    request = chat(QUESTION, max_tokens=24, stream=True)
    text = ""
    with (
        running.client() as client,
        client.stream("POST", "/v1/chat/completions", json=request) as stream,
    ):
        events = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    for event in events[:-1]:
        for choice in json.loads(event)["choices"]:
            text += choice["delta"].get("content") or ""
    assert "Paris" in text


@pytest.mark.integration
def test_the_model_has_the_name_of_the_recipe(running: Running) -> None:
    with running.client() as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["demo"]


@pytest.mark.integration
def test_a_prompt_beyond_the_context_is_refused(running: Running) -> None:
    with running.client() as client:
        answer = client.post("/v1/chat/completions", json=chat("word " * 4 * CONTEXT, max_tokens=4))
    assert answer.status_code == 400
    assert "context" in answer.text.lower()


@pytest.mark.integration
@pytest.mark.parametrize("key", [None, "wrong-key"])
def test_a_wrong_key_is_refused(running: Running, key: str | None) -> None:
    with running.client(key) as client:
        answer = client.post("/v1/chat/completions", json=chat("Hello", max_tokens=1))
    assert answer.status_code == 401


@pytest.mark.integration
def test_every_key_of_the_file_is_accepted_and_none_is_seen_or_logged(running: Running) -> None:
    keys = KEYS if running.multiple_keys else KEYS[:1]
    for key in keys:
        with running.client(key) as client:
            answer = client.post("/v1/chat/completions", json=chat("Hello", max_tokens=1))
        assert answer.status_code == 200
    argv = " ".join(psutil.Process(running.record.engine_pid).cmdline())
    log = Path(running.record.log).read_text(encoding="utf-8")
    state = (Path(running.record.log).parent / "state.json").read_text(encoding="utf-8")
    for key in KEYS:
        assert key not in argv
        assert key not in log
        assert key not in state


@pytest.mark.integration
def test_it_listens_on_loopback_only(running: Running) -> None:
    connections = psutil.Process(running.record.engine_pid).net_connections(kind="tcp")
    listening = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    assert os.getpid() != running.record.engine_pid


@pytest.mark.integration
@pytest.mark.parametrize("server", SERVERS)
def test_stop_lets_a_running_stream_finish(
    server: str, home: Home, demo_gguf: Path, tmp_path: Path
) -> None:
    provision.ensure(TOOLCHAINS[server], home)
    request = chat("Tell a long story.", max_tokens=64, stream=True, ignore_eos=True)
    with (
        serving_it(server, home, demo_gguf, tmp_path) as one,
        ThreadPoolExecutor(1) as pool,
        one.client() as client,
        client.stream("POST", "/v1/chat/completions", json=request) as stream,
    ):
        lines = stream.iter_lines()
        next(line for line in lines if '"content"' in line)
        stopping = pool.submit(serving.stop, Home(tmp_path / "home"), one.record.name)
        assert [line for line in lines if line][-1] == "data: [DONE]"
        assert stopping.result(60).state == "stopped"
