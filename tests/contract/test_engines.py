"""One suite over every server an engine offers: the same model, the same promises.

Toolchains that are missing are made first, so the first run compiles llama.cpp. Where no
llama-server is installed, the compiled one is put on PATH to stand in for it. Each server is
started once; the last test stops it under load.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from deployer import serving
from deployer.artifacts import FOLDER, Bundle, Manifest
from deployer.engines import ENGINES, Facts, ModelToServe
from deployer.engines.llama_cpp import NATIVE, PYTHON, WHEEL
from deployer.engines.transformers import CPU as TRANSFORMERS
from deployer.engines.vllm import CPU
from deployer.errors import PlanError
from deployer.home import Home
from deployer.process import which
from deployer.recipe import SERVERS, Serve, Vllm
from deployer.toolchains import provision

KEYS = ("first-key", "second-key")
CONTEXT = 256
QUESTION = "What is the capital city of France? Answer in one word."
OFFERED = tuple(
    (engine, server) for engine in ENGINES for server in SERVERS[engine] if server != "auto"
)
FLAGS = {
    "llama.cpp": ("--model", "--alias", "--ctx-size"),
    "vllm": ("--model", "--served-model-name", "--max-model-len"),
    "transformers": ("--model", "--alias", "--context"),
}
"""Engine -> its arguments for the weights, the name and the context."""
TOOLCHAINS = {
    "source": NATIVE, "llama-server": NATIVE, "xllamacpp": WHEEL, "llama-cpp-python": PYTHON,
    "vllm": CPU, "transformers": TRANSFORMERS,
}  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("engine_name", ENGINES)
def test_every_public_program_keeps_the_promises_of_the_protocol(
    engine_name: str, device: str
) -> None:
    engine = ENGINES[engine_name]
    serve = Serve(port=9, api_key_file="/secret/keys", context=100, parallel=1)
    model = ModelToServe(Path("/bundle/weights"), "name", device, weights_bytes=1000)
    try:
        made = engine.portable(model, serve, 3)
    except PlanError as error:
        assert error.hint
        return
    assert "/bundle/weights" in made.argv
    assert {"name", "9", "127.0.0.1"} <= set(made.argv)
    assert not any("secret" in word for word in (*made.argv, *made.env.values()))
    assert made.key_variable not in (None, *made.env)
    assert made.release and all(made.env.values())


@pytest.mark.parametrize(("engine_name", "server"), OFFERED)
def test_every_launch_keeps_the_promises_of_the_protocol(engine_name: str, server: str) -> None:
    engine = ENGINES[engine_name]
    serve = Serve(port=9, api_key_file="/secret/keys", context=100, parallel=1)
    model = ModelToServe(Path("/bundle/weights"), "name", weights_bytes=1000)
    facts = Facts(cores=3, programs=frozenset(engine.programs))
    assert engine.choose(server, facts) == server
    launch = engine.launch(server, model, serve, facts)
    arguments = launch.command.arguments
    weights, name, context = FLAGS[engine_name]
    for flag, value in {
        weights: "/bundle/weights", name: "name", "--host": "127.0.0.1", "--port": "9",
        context: "100", "--api-key-file": "/secret/keys",
    }.items():  # fmt: skip
        assert arguments[arguments.index(flag) + 1] == value
    assert "3" in (*arguments, *launch.command.env.values()), "the cores are not used"
    assert launch.drains or launch.metrics, "nothing tells when it may be stopped"
    assert engine.memory(model, serve, facts).total > 1000
    assert engine.scoring("cpu").worker.startswith("score_")


@dataclass(frozen=True)
class Running:
    server: str
    record: serving.ServerRecord
    home: Home

    @property
    def batches(self) -> bool:
        """Whether it takes several requests at once, and several keys."""
        return self.server != "llama-cpp-python"

    @property
    def processes(self) -> list[psutil.Process]:
        engine = psutil.Process(self.record.engine_pid)
        return [engine, *engine.children(recursive=True)]

    def client(self, key: str | None = KEYS[0]) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(
            base_url=self.record.endpoint, headers=headers, timeout=120, trust_env=False
        )


@contextmanager
def serving_it(server: str, home: Home, bundle: Bundle, folder: Path) -> Iterator[Running]:
    """Start a server in a home of its own and stop it; afterwards nothing may be left."""
    key_file = folder / "keys"
    keys = KEYS[:1] if server == "llama-cpp-python" else KEYS
    key_file.write_text("# keys\n" + "\n".join(keys) + "\n")
    key_file.chmod(0o600)
    serve = Serve(
        server=server, port=0, context=CONTEXT, parallel=2, threads=1, drain_timeout=120,
        api_key_file=str(key_file), vllm=Vllm(eager=True),
    )  # fmt: skip
    own_home = Home(folder / "home")
    own_home.root.mkdir()
    (own_home.root / "toolchains").symlink_to(home.toolchains)
    with pytest.MonkeyPatch.context() as patch:
        if server == "llama-server":
            patch.setenv("PATH", str(installed_llama_server(home)), prepend=os.pathsep)
        record = serving.start(bundle, serve, own_home, device="cpu", detach=True)
    running = Running(server, record, own_home)
    processes = running.processes
    try:
        yield running
    finally:
        for left in serving.status(own_home):
            serving.stop(own_home, left.name)
    assert ended(processes)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{record.endpoint}/v1/models", trust_env=False)


def ended(processes: list[psutil.Process]) -> bool:
    """Whether all of them are gone; a few seconds are granted for tidying up."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def installed_llama_server(home: Home) -> Path:
    """The folder of an installed llama-server; the compiled one stands in where there is none."""
    found = which("llama-server") or provision.ensure(NATIVE, home).program("llama-server")
    return found.parent


def bundle_for(server: str, request: pytest.FixtureRequest) -> Bundle:
    """The demo model in the format the server loads."""
    engine = next(engine for engine, name in OFFERED if name == server)
    if ENGINES[engine].format == "checkpoint":
        return bundle_of(engine, request.getfixturevalue("demo_checkpoint"), FOLDER)
    gguf = request.getfixturevalue("demo_gguf")
    return bundle_of(engine, gguf.parent, gguf.name)


def bundle_of(engine: str, root: Path, weights: str) -> Bundle:
    manifest = Manifest(
        name="demo", digest="0", engine=engine, weights=weights, size_bytes=0,
        bits_per_weight=16.0, files=(), recipe={}, serve={}, source={},
        quantization={"kv_bytes_per_token": 23040}, quality={}, parity={}, tools={},
        created_by="test",
    )  # fmt: skip
    return Bundle(root, manifest)


@pytest.fixture(scope="module", params=[server for _, server in OFFERED])
def running(
    request: pytest.FixtureRequest, home: Home, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    server = request.param
    provision.ensure(TOOLCHAINS[server], home)
    folder = tmp_path_factory.mktemp(f"contract-{server}")
    with serving_it(server, home, bundle_for(server, request), folder) as one:
        yield one


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
    keys = KEYS if running.batches else KEYS[:1]
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
def test_eight_streams_at_once_end_with_their_usage(running: Running) -> None:
    if not running.batches:
        pytest.skip("the llama-cpp-python server takes one request at a time")

    def stream(number: int) -> dict[str, int]:
        request = chat(
            f"Count from {number}.", max_tokens=16, stream=True, ignore_eos=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        with (
            running.client() as client,
            client.stream("POST", "/v1/chat/completions", json=request) as answer,
        ):
            lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        return json.loads(lines[-2])["usage"]

    with ThreadPoolExecutor(8) as pool:
        usages = list(pool.map(stream, range(8)))
    assert [usage["completion_tokens"] for usage in usages] == [16] * 8
    assert all(usage["prompt_tokens"] > 0 for usage in usages)


@pytest.mark.integration
def test_it_listens_on_loopback_only(running: Running) -> None:
    listening = {
        connection.laddr.ip
        for process in running.processes
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    assert os.getpid() != running.record.engine_pid


@pytest.mark.integration
def test_what_is_no_health_check_needs_the_key(running: Running) -> None:
    if running.server not in ("vllm", "transformers"):
        pytest.skip("deployer's own check stands in front of these two only")
    with running.client(None) as client:
        assert client.get("/health").status_code == 200
        for path in ("/metrics", "/version", "/v1/models", "/openapi.json"):
            assert client.get(path).status_code == 401
        for path in ("/tokenize", "/invocations", "/v1/completions"):
            assert client.post(path, json={"prompt": "Hello"}).status_code == 401


@pytest.mark.integration
def test_stop_lets_a_running_stream_finish(running: Running) -> None:
    """The last test of a server: it is stopped."""
    request = chat("Tell a long story.", max_tokens=64, stream=True, ignore_eos=True)
    with (
        ThreadPoolExecutor(1) as pool,
        running.client() as client,
        client.stream("POST", "/v1/chat/completions", json=request) as stream,
    ):
        lines = stream.iter_lines()
        next(line for line in lines if '"content"' in line)
        stopping = pool.submit(serving.stop, running.home, running.record.name)
        assert [line for line in lines if line][-1] == "data: [DONE]"
        assert stopping.result(60).state == "stopped"


@pytest.mark.integration
@pytest.mark.parametrize("server", ["xllamacpp", "vllm", "transformers"])
def test_a_killed_supervisor_leaves_no_process(
    server: str, request: pytest.FixtureRequest, home: Home, tmp_path: Path
) -> None:
    provision.ensure(TOOLCHAINS[server], home)
    with serving_it(server, home, bundle_for(server, request), tmp_path) as one:
        processes = one.processes
        started = time.monotonic()
        os.kill(one.record.supervisor_pid, signal.SIGKILL)
        assert ended(processes)
        assert time.monotonic() - started < 10
