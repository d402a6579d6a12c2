"""The systemd unit, judged by systemd; the notify protocol with a real server; a real service.

The service runs under a systemd that is process 1 of namespaces made for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from command_line import DEPLOYER, environment, home_beside, must
from guard import REPOSITORY
from made_up_bundle import deployment
from private_systemd import USER_ID, PrivateSystemd, booted
from slow import SLOW

from deployer.artifacts import Bundle
from deployer.deployments import DeploymentFolder, DeploymentRecord
from deployer.exporting import systemd
from deployer.home import Home

ANALYZE = shutil.which("systemd-analyze")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(ANALYZE is None, reason="needs systemd: apt-get install systemd"),
]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama.cpp": ("llama.cpp", {}),
    "estimated": ("llama.cpp", {"measured": False}),
    "keys": ("llama.cpp", {"options": {"host": "0.0.0.0", "key_secret": "/etc/deployer/a b%"}}),
    "arguments": ("llama.cpp", {"serve": {"extra_args": ("--x", '{"a": "b c%$d;"}')}}),
    "vllm": ("vllm", {}),
    "vllm-gpu": ("vllm", {"device": "cuda"}),
    "transformers": ("transformers", {}),
}


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ANALYZE), *map(str, arguments)], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_systemd_finds_nothing_wrong_and_little_exposed(name: str, tmp_path: Path) -> None:
    engine, how = VARIANTS[name]
    files = systemd.render(deployment(engine, **how))
    (unit,) = (file for file in files if file.endswith(".service"))
    # The program need not be where the unit will find it for this to be asked.
    text = files[unit].replace(systemd.PROGRAM, "/bin/true")
    (tmp_path / unit).write_text(text, encoding="utf-8")
    verified = analyze("verify", tmp_path / unit)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    judged = analyze("security", "--offline=true", "--threshold=30", "--no-pager", tmp_path / unit)
    assert judged.returncode == 0, judged.stdout
    print(judged.stdout.strip().splitlines()[-1])


def test_systemd_does_find_what_is_wrong(tmp_path: Path) -> None:
    (text,) = (t for n, t in systemd.render(deployment()).items() if n.endswith(".service"))
    broken = tmp_path / "deployer-x.service"
    broken.write_text(text.replace("NotifyAccess", "NotifyAcess"), encoding="utf-8")
    assert "'NotifyAcess'" in analyze("verify", broken).stderr
    bare = "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("SystemCall"))
    broken.write_text(bare.replace("CapabilityBoundingSet=", "#"), encoding="utf-8")
    security = ("security", "--offline=true", "--threshold=30", "--no-pager")
    assert analyze(*security, broken).returncode != 0


@pytest.fixture
def heard() -> Iterator[socket.socket]:
    with (
        tempfile.TemporaryDirectory(prefix="notify-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(str(Path(folder) / "s"))
        yield listener


def messages(heard: socket.socket, seconds: float, until: str = "") -> list[str]:
    """The assignments that came within so many seconds, at most up to the one named."""
    found: list[str] = []
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and until not in found:
        heard.settimeout(left)
        try:
            found += heard.recv(4096).decode().split("\n")
        except TimeoutError:
            break
    return found


@pytest.fixture
def serving(
    home: Home, demo_bundle: Bundle, tmp_path: Path, heard: socket.socket
) -> Iterator[subprocess.Popen[bytes]]:
    """`deployer serve` in the foreground, as systemd would start it, with a watchdog of 3 s."""
    own = home_beside(home, tmp_path / "home")
    asked = {"NOTIFY_SOCKET": heard.getsockname(), "WATCHDOG_USEC": "3000000"}
    settings = ("port=0", "context=256", "parallel=2", "threads=1", "server=xllamacpp")
    words = [word for each in settings for word in ("--set", f"serve.{each}")]
    with (tmp_path / "serve.log").open("wb") as log:
        child = subprocess.Popen(
            [str(DEPLOYER), "serve", str(demo_bundle.root), *words], env=environment(own, asked),
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def test_ready_alive_hung_alive_again_and_stopping(
    heard: socket.socket, serving: subprocess.Popen[bytes]
) -> None:
    """Process 1 in this play is the test."""
    begun = messages(heard, 90, until="READY=1")
    assert "STATUS=starting" in begun and begun[-1].startswith("STATUS=ready: ")
    said = messages(heard, 10, until="WATCHDOG=1")
    assert said[-1] == "WATCHDOG=1"

    (engine,) = psutil.Process(serving.pid).children()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & engine.environ().keys()
    engine.send_signal(signal.SIGSTOP)
    messages(heard, 1.5)  # one may be under way
    assert "WATCHDOG=1" not in messages(heard, 3.5), "systemd would have ended it by now"
    engine.send_signal(signal.SIGCONT)
    assert "WATCHDOG=1" in messages(heard, 15, until="WATCHDOG=1")

    serving.send_signal(signal.SIGTERM)
    assert "STOPPING=1" in messages(heard, 5, until="STOPPING=1")
    assert serving.wait(20) == 0


@pytest.fixture
def deployment_served(
    home: Home, demo_bundle: Bundle, tmp_path: Path, heard: socket.socket
) -> Iterator[tuple[subprocess.Popen[bytes], Home]]:
    """`deployer serve --gateway` in the foreground, as systemd would start it; and its home."""
    own = home_beside(home, tmp_path / "home")
    asked = {"NOTIFY_SOCKET": heard.getsockname(), "WATCHDOG_USEC": "3000000"}
    settings = ("gateway.port=0", "serve.context=256", "serve.parallel=1", "serve.threads=1",
                "serve.server=xllamacpp")  # fmt: skip
    words = [word for each in settings for word in ("--set", each)]
    with (tmp_path / "serve.log").open("wb") as log:
        child = subprocess.Popen(
            [str(DEPLOYER), "serve", "--gateway", str(demo_bundle.root), "--name", "told", *words],
            env=environment(own, asked), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield child, own
    finally:
        child.kill()
        child.wait()


def test_a_deployment_is_ready_when_its_gateway_answers_and_not_before(
    heard: socket.socket, deployment_served: tuple[subprocess.Popen[bytes], Home]
) -> None:
    child, own = deployment_served
    folder = DeploymentFolder.of(own, "told")

    def record() -> DeploymentRecord:
        deadline = time.monotonic() + 60
        while (found := folder.read()) is None or found.gateway_pid is None:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        return found

    gateway = psutil.Process(record().gateway_pid)
    gateway.send_signal(signal.SIGSTOP)
    begun: list[str] = []
    while not (servers := record().servers) or {each.state for each in servers.values()} != {
        "ready"
    }:
        begun += messages(heard, 0.2)
    begun += messages(heard, 4)  # life is shown each second, whatever the gateway does
    assert begun.count("WATCHDOG=1") >= 3
    assert "READY=1" not in begun, "its server is ready, but the gateway answers nobody"
    gateway.send_signal(signal.SIGCONT)
    assert messages(heard, 20, until="READY=1")[-2:] == ["READY=1", "STATUS=ready"]
    assert httpx.get(f"{record().endpoint}/health", trust_env=False).status_code == 200
    for below in psutil.Process(child.pid).children(recursive=True):
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & below.environ().keys()
    child.send_signal(signal.SIGTERM)
    assert "STOPPING=1" in messages(heard, 5, until="STOPPING=1")
    assert child.wait(20) == 0


HIDDEN = ("/root", "/home", "/run/user", "/tmp", "/var/tmp")
"""What the unit's own rights hide: where this machine has deployer there, the test shows it."""


def drop_in(home: Home) -> str:
    """What only this machine needs: a short watchdog, and deployer where users have it."""
    places = {Path(sys.base_prefix), Path(sys.prefix), REPOSITORY, home.root}
    hidden = sorted(str(place) for place in places if str(place).startswith(HIDDEN))
    shown = f"ProtectHome=tmpfs\nBindReadOnlyPaths={' '.join(hidden)}\n" if hidden else ""
    return (
        "[Service]\nWatchdogSec=6\nRestartSec=1\n"  # below: there is no journal
        f"StandardOutput=append:/var/lib/said.log\nStandardError=inherit\n{shown}"
    )


@contextmanager
def service(
    bundle: Bundle, home: Home, tmp_path: Path, *more: str
) -> Iterator[tuple[PrivateSystemd, str, str]]:
    """(systemd, the unit, the server's URL): exported by the command, installed, not started.

    `more` is added to the unit's command.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    must(
        "export", bundle.root, "--to", "systemd", "--estimate", "--port", str(port),
        "--model", "/var/lib/deployer/model", "-o", tmp_path / "out",
        home=home_beside(home, tmp_path / "home"),
    )  # fmt: skip
    (source,) = (tmp_path / "out").glob("*.service")
    with booted(tmp_path / "systemd", systemd.USER) as manager:
        text = source.read_text("utf-8").replace(systemd.PROGRAM, str(DEPLOYER))
        for line in [line for line in text.splitlines() if line.startswith("ExecStart=") and more]:
            text = text.replace(line, " ".join((line, *more)))
        (manager.units / source.name).write_text(text, encoding="utf-8")
        (manager.units / f"{source.name}.d").mkdir()
        (manager.units / f"{source.name}.d" / "test.conf").write_text(drop_in(home))
        state = manager.lib / "deployer"
        state.mkdir()
        shutil.copytree(bundle.root, state / "model")
        (state / "toolchains").symlink_to(home.toolchains)
        os.chown(state, USER_ID, USER_ID)
        manager.systemctl("daemon-reload")
        yield manager, source.name, f"http://127.0.0.1:{port}"


def ask(url: str, path: str = "/v1/chat/completions") -> str:
    """What it says to the capital of France: asked in a chat, or as a text to go on with."""
    question = {"role": "user", "content": "What is the capital city of France?"}
    body = {"messages": [question], "prompt": "The capital of France is"}
    given = "messages" if "chat" in path else "prompt"
    request = {given: body[given], "max_tokens": 24, "temperature": 0}
    answer = httpx.post(f"{url}{path}", json=request, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.text


def engine_of(manager: PrivateSystemd, mark: str) -> psutil.Process:
    """The engine's process, as this machine numbers it: the first whose command has `mark`."""
    return next(
        process
        for process in psutil.Process(manager.pid).children(recursive=True)
        if any(mark in word for word in process.cmdline())
    )


def start(manager: PrivateSystemd, unit: str, seconds: float = 120) -> None:
    """Start the unit; `systemctl` comes back once it is ready."""
    started = manager.systemctl("start", unit, seconds=seconds)
    said = "\n".join(path.read_text() for path in manager.lib.rglob("*.log"))
    assert started.returncode == 0, started.stderr + said
    assert manager.show(unit, "StatusText").startswith("ready: ")


def check_confined(engine: psutil.Process) -> None:
    facts = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{engine.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert (facts["NoNewPrivs"], facts["Seccomp"], int(facts["CapEff"], 16)) == ("1", "2", 0)
    assert engine.uids().real == USER_ID


def check_stops(manager: PrivateSystemd, unit: str, url: str) -> None:
    assert manager.systemctl("stop", unit).returncode == 0
    assert manager.show(unit, "Result") == "success"
    with pytest.raises(httpx.ConnectError):
        ask(url)


def test_a_real_service_is_ready_confined_watched_and_stops(
    demo_bundle: Bundle, home: Home, tmp_path: Path
) -> None:
    with service(demo_bundle, home, tmp_path) as (manager, unit, url):
        start(manager, unit)
        assert "Paris" in ask(url)
        engine = engine_of(manager, "--ctx-size")
        check_confined(engine)

        engine.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while manager.show(unit, "NRestarts") != "1" or manager.show(unit, "SubState") != "running":
            assert time.monotonic() < deadline, manager.systemctl("status", unit).stdout
            time.sleep(0.2)
        assert engine_of(manager, "--ctx-size").pid != engine.pid
        assert "Paris" in ask(url), "the watchdog ended the hung one, and another was started"
        check_stops(manager, unit, url)


@SLOW
@pytest.mark.timeout(900)
def test_a_real_service_of_vllm_lives_with_its_rights(home: Home, tmp_path: Path) -> None:
    beside = home_beside(home, tmp_path / "built", "store", "bundles")
    recipe = REPOSITORY / "recipes" / "smollm2-bf16.yaml"
    bundle = Bundle.read(Path(must("build", recipe, home=beside)["bundle"]))
    settings = ("vllm.eager=true", "context=512", "parallel=2")
    more = [word for each in settings for word in ("--set", f"serve.{each}")]
    with service(bundle, home, tmp_path, *more) as (manager, unit, url):
        start(manager, unit, seconds=600)
        assert "Paris" in ask(url, "/v1/completions")
        check_confined(engine_of(manager, "serve_vllm"))
        check_stops(manager, unit, url)
