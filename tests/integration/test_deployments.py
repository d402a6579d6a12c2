"""Deployments with real engines: started, changed under load, broken in several ways, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from certificates import certificate_of, make_certificate
from command_line import DEPLOYER, deployer, environment, gone, must

from deployer import deployments, serving
from deployer.artifacts import Bundle
from deployer.deployments import DeploymentRecord
from deployer.errors import ServerError, UsageError
from deployer.home import Home
from deployer.progress import SILENT
from deployer.workflow import deploying, lookup

pytestmark = pytest.mark.integration

SERVE = {"server": "xllamacpp", "context": 512, "parallel": 2, "threads": 1}
SECONDS = 60.0


class Chat:
    """The deployment `chat` of the tests: two servers of one bundle, `a` and `b`."""

    def __init__(self, home: Home, folder: Path, bundle: Bundle) -> None:
        self.home = home
        self.served: dict[str, Any] = {}
        self.file = folder / "chat.yaml"
        self.settings: dict[str, Any] = {
            "version": 1,
            "name": "chat",
            "gateway": {"port": 0, "drain_timeout": 60},
            "servers": {
                name: {"bundle": str(bundle.root), "serve": dict(SERVE)} for name in ("a", "b")
            },
            "routes": [{"model": "demo", "to": {"a": 1.0, "b": 1.0}}],
        }
        self.write()

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.settings), encoding="utf-8")

    @property
    def record(self) -> DeploymentRecord:
        return deployments.status(self.home, "chat")[0]

    def reload(self) -> DeploymentRecord:
        """Reload it, as the command does, but without a process for that."""
        return deploying.reload("chat", None, (), self.home, SILENT)

    def ask(self, tokens: int = 4, stream: bool = False) -> httpx.Response:
        request = {
            "model": "demo", "stream": stream, "max_tokens": tokens, "temperature": 0,
            "messages": [{"role": "user", "content": "Count to twenty."}],
        }  # fmt: skip
        url = f"{self.record.endpoint}/v1/chat/completions"
        with httpx.Client(trust_env=False, timeout=SECONDS) as client:
            return client.post(url, json=request)

    def answered_by(self, times: int) -> Counter[str]:
        answers = [self.ask() for _ in range(times)]
        assert {answer.status_code for answer in answers} == {200}, answers[-1].text
        return Counter(answer.headers["x-deployer-server"] for answer in answers)


@pytest.fixture(scope="module")
def chat(
    home: Home, demo_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chat]:
    """A running deployment, shared by the tests of this module up to the one that stops it."""
    folder = tmp_path_factory.mktemp("deployment")
    own = Home(folder / "home")
    own.root.mkdir()
    for name in ("toolchains", "cache"):
        (own.root / name).symlink_to(home.root / name)
    made = Chat(own, folder, demo_bundle)
    made.served = must("serve", made.file, "--detach", home=own)
    yield made
    deployer("stop", "--all", home=own)


def until(what: Callable[[], bool], seconds: float = SECONDS) -> float:
    """Wait until it holds; gives the seconds that took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, "it did not come to that"
        time.sleep(0.05)
    return time.monotonic() - began


def processes_of(record: DeploymentRecord) -> list[psutil.Process]:
    """A deployment's supervisor and everything below it."""
    supervisor = psutil.Process(record.supervisor_pid)
    return [supervisor, *supervisor.children(recursive=True)]


def is_closed(endpoint: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", httpx.URL(endpoint).port or 0)) != 0


def test_serve_and_ask(chat: Chat) -> None:
    document = chat.served
    assert (document["name"], document["state"], document["generation"]) == ("chat", "ready", 1)
    assert {"endpoint", "supervisor_pid", "gateway_pid", "servers", "log"} <= set(document)
    assert document["servers"]["a"]["instance"] == "chat.a.1"
    servers: Counter[str] = Counter()
    while len(servers) < 2:  # who answers is drawn by lot
        assert servers.total() < 30
        servers += chat.answered_by(1)
    whole = must("status", home=chat.home)
    assert [server["name"] for server in whole["servers"]] == ["chat.a.1", "chat.b.1"]
    assert [each["name"] for each in whole["deployments"]] == ["chat"]
    with pytest.raises(ServerError, match="a deployment named chat runs already"):
        deploying.serve(str(chat.file), (), chat.home, SILENT, detach=True)


def test_new_weights_start_no_server(chat: Chat) -> None:
    before = chat.record
    chat.settings["routes"][0]["to"] = {"a": 1.0, "b": 0.0}
    chat.write()
    assert chat.reload().generation == before.generation + 1
    assert chat.answered_by(3) == {"a": 3}
    assert chat.record.servers == before.servers
    assert chat.record.gateway_pid == before.gateway_pid


def test_a_server_is_replaced_under_load_and_no_request_is_lost(chat: Chat) -> None:
    before = chat.record
    chat.settings["servers"]["a"]["serve"]["context"] = 768
    chat.write()
    over = threading.Event()
    answers: list[httpx.Response] = []

    def load() -> None:
        while not over.is_set():
            answers.append(chat.ask(tokens=16, stream=True))

    with ThreadPoolExecutor(3) as pool:
        users = [pool.submit(load) for _ in range(3)]
        try:
            until(lambda: len(answers) >= 3)
            ran = deployer("reload", "chat", home=chat.home)
            old_gone = until(lambda: not chat.record.retiring)
            count = len(answers)
            until(lambda: len(answers) >= count + 6)
        finally:
            over.set()
        for user in users:
            user.result()
    assert ran.code == 0, ran.err
    assert "a is ready" in ran.err
    lost = [each for each in answers if each.status_code != 200 or "[DONE]" not in each.text]
    assert lost == []
    assert chat.record.servers["a"].instance == f"chat.a.{before.generation + 1}"
    assert chat.record.servers["b"].instance == before.servers["b"].instance
    print(f"{len(answers)} requests, 0 lost; the old server ended after {old_gone:.1f} s")


def test_a_reload_that_fails_changes_nothing(chat: Chat) -> None:
    good = json.dumps(chat.settings)
    before = chat.record
    chat.settings["servers"]["a"]["serve"]["extra_args"] = ["--nonsense"]
    chat.settings["routes"][0]["to"] = {"b": 1.0}
    chat.write()
    ran = deployer("reload", "chat", home=chat.home)
    assert ran.code == 1
    assert "chat was not changed: server a: the server ended" in ran.err
    assert "--nonsense" in ran.err
    assert (chat.record.generation, chat.record.servers) == (before.generation, before.servers)
    assert chat.ask().status_code == 200
    chat.settings["gateway"]["port"] = 1
    chat.write()
    with pytest.raises(UsageError, match=r"gateway\.port is 0 and cannot become 1"):
        chat.reload()
    chat.settings = json.loads(good)
    chat.write()
    assert chat.reload().generation == before.generation + 2


def test_a_gateway_that_is_killed_comes_back(chat: Chat) -> None:
    killed = chat.record.gateway_pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    began = time.monotonic()
    assert chat.ask().status_code == 200  # it waited at the port, which was open all the time
    print(f"answered {time.monotonic() - began:.1f} s after the gateway was killed")
    assert chat.record.gateway_restarts == 1
    assert chat.record.gateway_pid != killed


def test_a_supervisor_that_is_killed_is_started_again(chat: Chat) -> None:
    server = serving.status(chat.home, chat.record.servers["a"].instance)[0]
    os.kill(server.supervisor_pid, signal.SIGKILL)
    assert server.engine_pid and gone(server.engine_pid)
    until(lambda: chat.record.state == "degraded")
    until(lambda: chat.record.state == "ready")
    assert chat.record.servers["a"].restarts == 1
    assert chat.ask().status_code == 200


def test_stop_leaves_nothing(chat: Chat) -> None:
    endpoint, processes = chat.record.endpoint, processes_of(chat.record)
    assert len(processes) >= 6  # two supervisors and their engines, the gateway, their supervisor
    document = must("stop", "chat", home=chat.home)
    assert [each["state"] for each in document["deployments"]] == ["stopped"]
    assert all(gone(process.pid) for process in processes)
    assert is_closed(endpoint)
    assert lookup.status(chat.home, None) == lookup.Records()
    lines = Path(chat.record.events).read_text(encoding="utf-8").splitlines()
    told = {json.loads(line)["event"] for line in lines}
    assert {"gateway_started", "table_applied", "gateway_draining", "gateway_stopped"} <= told


def test_a_server_that_cannot_start_fails_the_deployment_with_its_cause(chat: Chat) -> None:
    broken = ["--set", "servers.a.serve.extra_args=[--nonsense]", "--name", "broken"]
    ran = deployer("serve", chat.file, "--detach", *broken, home=chat.home)
    assert ran.code == 1
    assert "server a: the server ended" in ran.err
    (failed,) = deployments.status(chat.home, "broken")
    assert failed.state == "failed"
    assert is_closed(failed.endpoint)


def test_sigkill_of_the_deployments_supervisor_leaves_no_orphan(
    chat: Chat, demo_bundle: Bundle
) -> None:
    settings = [f"serve.{name}={value}" for name, value in SERVE.items()]
    options = [word for each in ["gateway.port=0", *settings] for word in ("--set", each)]
    command = [DEPLOYER, "serve", "--gateway", demo_bundle.root, "--name", "alone", *options]

    def record() -> DeploymentRecord:
        return deployments.status(chat.home, "alone")[0]

    with subprocess.Popen(
        [*map(str, command), "--json"], env=environment(chat.home), stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        line = running.stdout.readline()  # the document comes once it is ready
        assert line == b"{\n"
        assert record().supervisor_pid == running.pid  # the foreground command itself
        processes, endpoint = processes_of(record()), record().endpoint
        assert len(processes) == 4
        running.kill()
    assert all(gone(process.pid) for process in processes)
    assert is_closed(endpoint)
    assert record().state == "lost"


def test_tls_through_a_deployment(chat: Chat, demo_bundle: Bundle, tmp_path: Path) -> None:
    make_certificate(tmp_path, "first")
    (tmp_path / "key.pem").chmod(0o644)
    files = {"certificate": "cert.pem", "private_key": "key.pem"}
    wanted = {
        **chat.settings, "name": "tls", "gateway": {"port": 0, **files},
        "servers": {"a": {"bundle": str(demo_bundle.root), "serve": dict(SERVE)}},
        "routes": [{"model": "demo", "to": {"a": 1.0}}],
    }  # fmt: skip
    file = tmp_path / "tls.yaml"
    file.write_text(yaml.safe_dump(wanted), encoding="utf-8")

    def record() -> DeploymentRecord:
        return deployments.status(chat.home, "tls")[0]

    def ask(trusted: Path) -> int:
        context = ssl.create_default_context(cafile=trusted)
        url = f"{record().endpoint}/v1/models"
        return httpx.get(url, verify=context, trust_env=False).status_code

    served = deployer("serve", file, "--detach", home=chat.home)
    assert served.code == 0, served.err
    assert f"run: chmod 600 {tmp_path / 'key.pem'}" in served.err
    before = record()
    port = httpx.URL(before.endpoint).port
    assert port and before.endpoint == f"https://127.0.0.1:{port}"
    assert ask(tmp_path / "cert.pem") == 200
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False)

    first = certificate_of(port)
    make_certificate(tmp_path, "renewed")  # in the same files: no reload is needed
    until(lambda: certificate_of(port) != first, 10)
    assert ask(tmp_path / "cert.pem") == 200

    (other := tmp_path / "other").mkdir()
    make_certificate(other, "other")
    second = certificate_of(port)
    wanted["gateway"] |= {name: str(other / each) for name, each in files.items()}
    file.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    reloaded = deployer("reload", "tls", home=chat.home)
    assert (reloaded.code, "chmod" in reloaded.err) == (0, False), reloaded.err
    until(lambda: certificate_of(port) != second, 10)
    assert ask(other / "cert.pem") == 200
    (other / "key.pem").write_text("none", encoding="utf-8")
    refused = deployer("reload", "tls", home=chat.home)
    assert refused.code == 2
    assert "cannot be used" in refused.err
    assert ask(other / "cert.pem") == 200, "the pair in use stays"
    assert record().gateway_pid == before.gateway_pid
    assert record().servers == before.servers
    must("stop", "tls", home=chat.home)
