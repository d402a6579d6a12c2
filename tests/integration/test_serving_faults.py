"""The supervisor against a fake engine (`fake_engine_server.py`): faults, quickly."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from deployer import serving
from deployer.errors import ReadinessTimeout, ServerError, ServerExited, StoreError
from deployer.home import Home
from deployer.process import Child, clean_environment, spawn
from deployer.serving import control
from deployer.serving.spawning import spawn_supervisor
from deployer.serving.spec import Patience, Spec
from deployer.serving.state import ServerFolder, ServerRecord
from deployer.serving.supervisor import Supervisor

pytestmark = pytest.mark.integration

FAKE = Path(__file__).parent / "fake_engine_server.py"
HASTE = Patience(
    check_every=0.3, hung_after=1.2, idle_probe=0.5, stuck_after=2.0, memory_every=0.1,
    first_pause=0.1, longest_pause=0.4, good_run=60.0, attempts=3, limited=2,
)  # fmt: skip
"""Everything in seconds that takes minutes else."""


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
        "name": "fake", "engine": "fake", "server": "fake", "slots": 1, "context": 64,
        "argv": (*argv, "--behaviour", behaviour, *extra), "memory_bytes": 1 << 20,
        "url": f"http://127.0.0.1:{port}", "port": port, "model": "fake", "bundle": "none",
        "ready_timeout": 20.0, "drain_timeout": 5.0, "drains": False,
        "health": "/health", "metrics": "/metrics", "patience": HASTE,
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
        children.append(spawn_supervisor(spec, folder, outlive_us=True))
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


def test_a_crashed_engine_is_started_again_as_often_as_it_comes_up(
    folder: ServerFolder, detached: Callable[[Spec], Child]
) -> None:
    detached(spec_for(free_port(), "crash", "--after", "0.05"))
    again = wait_for(folder, lambda r: r.restarts >= 5, seconds=40)
    assert again.last_cause == "killed" and again.ready_seconds is not None
    said = folder.supervisor_log.read_text().splitlines()
    pauses = [line.rpartition(" in ")[2] for line in said]
    assert pauses[:5] == ["0.1 s", "0.2 s", "0.4 s", "0.4 s", "0.4 s"]


def test_a_crash_loop_at_load_is_bounded_and_ends_with_the_cause_and_the_log(
    folder: ServerFolder, detached: Callable[[Spec], Child], tmp_path: Path
) -> None:
    words = ("--marker", str(tmp_path / "marker"), "--say", "last words")
    child = detached(spec_for(free_port(), "once", "--after", "0.05", *words))
    failed = wait_for(folder, lambda r: r.state == "failed", seconds=40)
    assert failed.restarts == HASTE.attempts
    assert failed.error is not None
    assert "exit status 1" in str(failed.error["message"])
    assert "| last words" in str(failed.error["message"])
    assert child.wait(5) == 1


@pytest.mark.faults
def test_one_that_comes_up_no_more_in_time_is_tried_again_and_then_given_up(
    folder: ServerFolder, detached: Callable[[Spec], Child], tmp_path: Path
) -> None:
    """The second start finds the marker and hangs instead of serving."""
    port = free_port()
    script = (
        "import os, sys, time; m = sys.argv[1]\n"
        "if os.path.exists(m): time.sleep(60)\n"
        "open(m, 'w'); os.execv(sys.argv[2], sys.argv[2:])"
    )
    inner = spec_for(port, "crash", "--after", "0.05").argv
    argv = (sys.executable, "-c", script, str(tmp_path / "marker"), *inner)
    detached(spec_for(port, argv=argv, ready_timeout=2.0))
    failed = wait_for(folder, lambda r: r.state == "failed", seconds=40)
    assert (failed.restarts, failed.last_cause) == (HASTE.attempts, "not ready")
    assert failed.error is not None
    assert failed.error["type"] == "ReadinessTimeout"


def first_in_the_gate(first: str, *more: str) -> list[object]:
    """Parameters of which `make test` takes the first alone."""
    return [first, *(pytest.param(each, marks=pytest.mark.faults) for each in more)]


@pytest.mark.parametrize("behaviour", first_in_the_gate("empty", "deaf", "stuck", "spin"))
def test_an_engine_that_makes_no_token_is_found_and_started_again(
    folder: ServerFolder, detached: Callable[[Spec], Child], behaviour: str
) -> None:
    detached(spec_for(free_port(), behaviour, "--after", "0.3"))
    first = wait_for(folder, lambda r: r.state == "ready")
    started = time.monotonic()
    again = wait_for(folder, lambda r: r.restarts == 1 and r.state == "ready", seconds=30)
    print(f"{behaviour}: answers again after {time.monotonic() - started:.1f} s")
    assert again.last_cause == "hung"
    assert again.engine_pid != first.engine_pid
    assert gone(first.engine_pid)


@pytest.mark.parametrize("behaviour", first_in_the_gate("drowned", "ok", "toil"))
def test_an_idle_or_saturated_engine_is_left_alone(
    folder: ServerFolder, detached: Callable[[Spec], Child], behaviour: str
) -> None:
    detached(spec_for(free_port(), behaviour, "--after", "0.3"))
    first = wait_for(folder, lambda r: r.state == "ready")
    time.sleep(HASTE.stuck_after + 2 * HASTE.hung_after + 1.0)
    now = folder.current()
    assert now is not None
    assert (now.state, now.restarts, now.engine_pid) == ("ready", 0, first.engine_pid)


def test_a_stopped_engine_is_found_and_started_again(
    folder: ServerFolder, detached: Callable[[Spec], Child]
) -> None:
    detached(spec_for(free_port()))
    first = wait_for(folder, lambda r: r.state == "ready")
    assert first.engine_pid is not None
    os.kill(first.engine_pid, signal.SIGSTOP)
    again = wait_for(folder, lambda r: r.restarts == 1 and r.state == "ready", seconds=30)
    assert again.last_cause == "hung"
    assert gone(first.engine_pid)


def test_how_busy_an_engine_is_stands_in_its_record(
    home: Home, folder: ServerFolder, detached: Callable[[Spec], Child]
) -> None:
    detached(spec_for(free_port(), "busy", "--after", "60", drain_timeout=0.0))
    busy = wait_for(folder, lambda r: r.running == 1)
    assert busy.waiting == 0
    assert busy.output_tokens_per_s is None or busy.output_tokens_per_s >= 0
    serving.stop(home, "fake")
    assert serving.status(home, "fake")[0].running is None


def test_an_engine_over_its_memory_limit_is_ended_and_then_given_up(
    folder: ServerFolder, detached: Callable[[Spec], Child]
) -> None:
    detached(spec_for(free_port(), "grow", "--after", "0.2", memory_limit=150 << 20))
    wait_for(folder, lambda r: r.restarts == 1 and r.last_cause == "over its memory limit")
    failed = wait_for(folder, lambda r: r.state == "failed", seconds=30)
    assert failed.restarts == HASTE.limited - 1
    assert failed.error is not None
    assert "serve.memory_limit_gib is 0.1465" in str(failed.error["message"])
    assert gone(failed.engine_pid)


def test_a_log_is_bounded_while_the_engine_writes_and_is_followed_all_the_same(
    home: Home, folder: ServerFolder, detached: Callable[[Spec], Child]
) -> None:
    most = 100_000
    patience = replace(HASTE, log_bytes=most)
    detached(spec_for(free_port(), "chatter", patience=patience))
    wait_for(folder, lambda r: r.state == "ready")
    threading.Timer(2.5, serving.stop, (home, "fake")).start()
    followed = [len(line) for line in serving.logs(home, "fake", lines=0, follow=True) if line]
    older = [folder.engine_log.with_name(f"engine.log.{n}") for n in (1, 2)]
    assert all(path.exists() for path in older)
    assert not folder.engine_log.with_name("engine.log.3").exists()
    assert folder.engine_log.stat().st_size < 10 * most
    assert len(followed) * 10_000 > most, "more than one log's worth was followed"


def test_what_an_engine_started_and_what_ignores_sigterm_goes_with_it(
    home: Home, folder: ServerFolder, detached: Callable[[Spec], Child]
) -> None:
    detached(spec_for(free_port(), "parent"))
    wait_for(folder, lambda r: r.state == "ready")
    (pid,) = [
        int(line.split()[1])
        for line in folder.engine_log.read_text().splitlines()
        if line.startswith("child ")
    ]
    assert not gone(pid)
    serving.stop(home, "fake")
    assert gone(pid)


def test_a_supervisor_that_hangs_is_killed_with_all_below_it(
    home: Home,
    folder: ServerFolder,
    detached: Callable[[Spec], Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = detached(spec_for(free_port(), "parent", drain_timeout=0.1))
    record = wait_for(folder, lambda r: r.state == "ready")
    pid = int(folder.engine_log.read_text().split("child ")[1].split()[0])
    child.signal(signal.SIGSTOP)
    monkeypatch.setattr(control, "MARGIN", 0.5)
    assert serving.stop(home, "fake").state == "stopped"
    assert all(gone(each) for each in (record.supervisor_pid, record.engine_pid, pid))


def test_a_full_disk_does_not_end_a_server_that_runs(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, seen = ServerFolder.write, []

    def on_ready(record: ServerRecord) -> None:
        seen.append(record)
        monkeypatch.setattr(ServerFolder, "write", full)
        stop_after(1.0)

    def full(_folder: ServerFolder, record: ServerRecord) -> None:
        if record.state == "stopped":
            return write(folder, record)
        raise OSError(errno.ENOSPC, "No space left on device")

    last = Supervisor(spec_for(free_port(), "crash"), folder, on_ready=on_ready).run()
    assert (last.state, seen[0].state) == ("stopped", "ready")
    assert last.restarts >= 1, "it was started again all the same"
    assert folder.read() == last


def test_a_full_disk_at_the_start_is_told(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_folder: ServerFolder, _record: ServerRecord) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ServerFolder, "write", full)
    port = free_port()
    with pytest.raises(StoreError, match="No space left"):
        Supervisor(spec_for(port), folder).run()
    assert is_free(port)


def test_a_clock_that_jumps_changes_nothing(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour forth and back, again and again, while a server starts, is idle and is probed."""
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + 3600.0 * (-1) ** next(jumps))
    seen: list[ServerRecord] = []

    def on_ready(record: ServerRecord) -> None:
        seen.append(record)
        stop_after(2.5)

    started = time.monotonic()
    last = Supervisor(spec_for(free_port()), folder, on_ready=on_ready).run()
    assert 2.5 <= time.monotonic() - started < 15
    assert (last.state, last.restarts) == ("stopped", 0)
    assert seen[0].ready_seconds is not None
    assert 0 < seen[0].ready_seconds < 15


def test_an_engine_runs_on_the_cpus_it_was_given(
    folder: ServerFolder, detached: Callable[[Spec], Child]
) -> None:
    cpu = max(os.sched_getaffinity(0))
    detached(spec_for(free_port(), cores=(cpu,)))
    record = wait_for(folder, lambda r: r.state == "ready")
    assert record.engine_pid is not None
    assert os.sched_getaffinity(record.engine_pid) == {cpu}
    assert os.sched_getaffinity(record.supervisor_pid) == os.sched_getaffinity(0)


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
