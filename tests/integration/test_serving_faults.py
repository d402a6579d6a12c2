"""The supervisor against a fake engine (`fake_engine_server.py`): faults, quickly."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deployer import serving
from deployer.errors import ReadinessTimeout, ServerError, ServerExited
from deployer.home import Home
from deployer.process import Child, clean_environment, spawn
from deployer.serving.state import ServerFolder, ServerRecord
from deployer.serving.supervisor import Spec, Supervisor

pytestmark = pytest.mark.integration

FAKE = Path(__file__).parent / "fake_engine_server.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def spec_for(port: int, behaviour: str = "ok", *extra: str, **changes: object) -> Spec:
    argv = (sys.executable, "-I", str(FAKE), "--port", str(port), "--model", "fake")
    values: dict[str, object] = {
        "name": "fake", "server": "fake", "argv": (*argv, "--behaviour", behaviour, *extra),
        "url": f"http://127.0.0.1:{port}", "port": port, "model": "fake", "bundle": "none",
        "ready_timeout": 20.0, "drain_timeout": 5.0, "drains": False,
        "health": "/health", "metrics": "/metrics",
    }  # fmt: skip
    return Spec(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def folder(home: Home) -> ServerFolder:
    folder = ServerFolder.of(home, "fake")
    folder.root.mkdir(parents=True)
    return folder


@pytest.fixture
def detached(folder: ServerFolder) -> Iterator[Callable[[Spec], Child]]:
    """Start a supervisor process; what is left of it is killed at the end."""
    children: list[Child] = []

    def launch(spec: Spec) -> Child:
        spec.write(folder.spec_file)
        argv = (sys.executable, "-m", "deployer.serving", str(folder.root))
        children.append(
            spawn(argv, env=clean_environment(), log_path=folder.supervisor_log, outlive_us=True)
        )
        return children[-1]

    yield launch
    for child in children:
        child.stop(grace=0.0)


def wait_for(
    folder: ServerFolder, holds: Callable[[ServerRecord], bool], seconds: float = 15.0
) -> ServerRecord:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        record = folder.current()
        if record and holds(record):
            return record
        time.sleep(0.02)
    raise AssertionError(f"never happened; last: {folder.current()}")


def gone(pid: int | None) -> bool:
    if pid is None or not psutil.pid_exists(pid):
        return True
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def stop_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()


def test_foreground_serves_until_sigterm_and_leaves_nothing(folder: ServerFolder) -> None:
    port = free_port()
    seen: list[ServerRecord] = []

    def on_ready(record: ServerRecord) -> None:
        seen.append(record)
        assert not is_free(port)
        stop_after(0.1)

    last = Supervisor(spec_for(port), folder, on_ready=on_ready).run()
    assert seen[0].state == "ready"
    assert seen[0].ready_seconds is not None
    assert last.state == "stopped"
    assert gone(seen[0].engine_pid)
    assert is_free(port)


@pytest.mark.parametrize(
    ("say", "cause"),
    [
        ("couldn't bind HTTP server socket, hostname: 127.0.0.1", "somebody else took its port"),
        ("error while loading shared libraries: libx.so", "a library it needs is missing"),
        ("error: invalid argument: --nonsense", "does not accept its arguments"),
        ("ggml_aligned_malloc: failed to allocate 99 GB", "ran out of memory"),
        ("llama_model_load: error loading model: invalid magic", "could not load the model"),
        ("something new", "something new"),
    ],
)
def test_engine_that_ends_at_start_is_named_and_not_retried(
    folder: ServerFolder, say: str, cause: str
) -> None:
    with pytest.raises(ServerExited, match=cause) as caught:
        Supervisor(spec_for(free_port(), "exit", "--say", say), folder).run()
    assert say in caught.value.message
    assert str(folder.engine_log) in caught.value.hint
    record = folder.read()
    assert record is not None
    assert (record.state, record.restarts) == ("failed", 0)
    assert record.error is not None
    assert record.error["type"] == "ServerExited"


@pytest.mark.parametrize(
    ("behaviour", "missing"), [("mute", "does not answer"), ("no-token", "holds no token")]
)
def test_no_token_in_time_is_a_timeout(folder: ServerFolder, behaviour: str, missing: str) -> None:
    port = free_port()
    started = time.monotonic()
    with pytest.raises(ReadinessTimeout, match=missing):
        Supervisor(spec_for(port, behaviour, ready_timeout=1.5), folder).run()
    assert time.monotonic() - started < 4
    assert is_free(port)


def test_an_answer_for_another_model_is_not_ready(folder: ServerFolder) -> None:
    spec = spec_for(free_port(), model="mine", ready_timeout=1.5)
    with pytest.raises(ReadinessTimeout, match="does not serve mine"):
        Supervisor(spec, folder).run()


def test_never_ready_from_somebody_elses_server(folder: ServerFolder, tmp_path: Path) -> None:
    """The port answers as ours would, but another process listens on it."""
    port = free_port()
    other = spawn(spec_for(port).argv, env=clean_environment(), log_path=tmp_path / "other.log")
    try:
        deadline = time.monotonic() + 10
        while is_free(port) and time.monotonic() < deadline:
            time.sleep(0.02)
        sleeper = (sys.executable, "-c", "import time; time.sleep(60)")
        spec = spec_for(port, argv=sleeper, ready_timeout=1.5)
        with pytest.raises(ReadinessTimeout, match="does not listen"):
            Supervisor(spec, folder).run()
        assert other.poll() is None
    finally:
        other.stop(grace=0.0)


def test_a_crashed_engine_is_started_again_and_the_attempts_are_bounded(
    folder: ServerFolder, detached: Callable[[Spec], Child]
) -> None:
    child = detached(spec_for(free_port(), "crash", "--after", "0.1"))
    wait_for(folder, lambda r: r.restarts == 1 and r.state == "ready")
    failed = wait_for(folder, lambda r: r.state == "failed", seconds=40)
    assert failed.restarts == 3
    assert failed.error is not None
    assert "SIGKILL" in str(failed.error["message"])
    assert child.wait(5) == 1


def test_sigkill_of_the_supervisor_leaves_no_orphan_and_the_state_is_recovered(
    home: Home, folder: ServerFolder, detached: Callable[[Spec], Child]
) -> None:
    port = free_port()
    child = detached(spec_for(port))
    record = wait_for(folder, lambda r: r.state == "ready")
    os.kill(record.supervisor_pid, signal.SIGKILL)
    child.wait(5)
    wait_for(folder, lambda r: gone(r.engine_pid))
    assert is_free(port)
    assert [r.state for r in serving.status(home)] == ["lost"]
    detached(spec_for(port))
    again = wait_for(folder, lambda r: r.state == "ready")
    assert again.supervisor_pid != record.supervisor_pid
    assert serving.stop(home, "fake").state == "stopped"
    assert serving.status(home) == []
    assert is_free(port)


def test_two_servers_cannot_have_one_name(
    folder: ServerFolder, detached: Callable[[Spec], Child]
) -> None:
    detached(spec_for(free_port()))
    first = wait_for(folder, lambda r: r.state == "ready")
    with pytest.raises(ServerError, match="runs already"):
        Supervisor(spec_for(free_port()), folder).run()
    record = folder.current()
    assert record is not None
    assert (record.supervisor_pid, record.state) == (first.supervisor_pid, "ready")


def test_stop_waits_until_nothing_runs(
    home: Home, folder: ServerFolder, detached: Callable[[Spec], Child]
) -> None:
    detached(spec_for(free_port(), "busy", "--after", "1.5"))
    wait_for(folder, lambda r: r.state == "ready")
    started = time.monotonic()
    serving.stop(home, "fake")
    assert 0.8 < time.monotonic() - started < 5


def test_draining_is_bounded_and_visible_and_a_second_signal_ends_it_at_once(
    folder: ServerFolder, detached: Callable[[Spec], Child]
) -> None:
    for signals in (1, 2):
        child = detached(spec_for(free_port(), "busy", "--after", "60", drain_timeout=2.0))
        record = wait_for(
            folder, lambda r, pid=child.pid: r.state == "ready" and r.supervisor_pid == pid
        )
        started = time.monotonic()
        child.signal(signal.SIGTERM)
        wait_for(folder, lambda r: r.state == "draining")
        if signals == 2:
            child.signal(signal.SIGINT)
        assert child.wait(10) == 0
        took = time.monotonic() - started
        assert took < 1.5 if signals == 2 else 2.0 <= took < 6.0
        assert gone(record.engine_pid)


def test_stop_while_it_still_starts(
    home: Home, folder: ServerFolder, detached: Callable[[Spec], Child]
) -> None:
    child = detached(spec_for(free_port(), "mute"))
    record = wait_for(folder, lambda r: r.state == "starting" and r.engine_pid is not None)
    assert serving.stop(home, "fake").state == "stopped"
    assert child.wait(5) == 0
    assert gone(record.engine_pid)


def test_the_engine_sees_no_stray_settings(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "stray-key")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "1")
    show = "import os; print(sorted(k for k in os.environ if k.startswith('LLAMA')))"
    with pytest.raises(ServerExited):
        Supervisor(spec_for(1, argv=(sys.executable, "-c", show)), folder).run()
    assert "[]" in folder.engine_log.read_text()


def test_the_log_of_the_start_before_is_kept(folder: ServerFolder) -> None:
    for say in ("first", "second"):
        with pytest.raises(ServerExited):
            Supervisor(spec_for(1, "exit", "--say", say), folder).run()
    assert "second" in folder.engine_log.read_text()
    assert "first" in folder.engine_log.with_suffix(".log.1").read_text()


def test_logs_follow_until_the_server_ends(
    home: Home, folder: ServerFolder, detached: Callable[[Spec], Child]
) -> None:
    detached(spec_for(free_port(), "ok", "--say", "hello from the engine"))
    wait_for(folder, lambda r: r.state == "ready")
    threading.Timer(0.5, serving.stop, (home, "fake")).start()
    assert "hello from the engine" in list(serving.logs(home, "fake", follow=True))
