"""Entering a toolchain: the protocol with the worker; the process itself is faked here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployer.errors import CommandError, StageError, StoreError
from deployer.toolchains import worker
from deployer.toolchains.installation import Toolchain
from deployer.toolchains.worker import run_worker, worker_environment


@pytest.fixture
def toolchain(tmp_path):
    return Toolchain("llama-cpp", "0" * 64, tmp_path, {})


class Updates:
    def __init__(self):
        self.seen = []

    def update(self, done=None, total=None, note=None):
        self.seen.append((done, total, note))


def fake_run(monkeypatch, lines=(), response=None):
    """Make `process.run` act as a worker that prints `lines` and answers `response`."""
    calls = {}

    def run(argv, *, env, log_path, cwd, timeout, on_line):
        calls.update(argv=argv, env=env, request=json.loads(Path(argv[3]).read_text()))
        for line in lines:
            on_line(line)
        if response is not None:
            Path(argv[4]).write_text(json.dumps(response), encoding="utf-8")
        return 0

    monkeypatch.setattr(worker.process, "run", run)
    return calls


def test_request_goes_in_and_response_comes_out(toolchain, tmp_path, monkeypatch):
    calls = fake_run(monkeypatch, response={"answer": 42})
    given = run_worker(toolchain, "scan_weights", {"path": "x"}, log_path=tmp_path / "l")
    assert given == {"answer": 42}
    assert calls["request"] == {"path": "x"}
    assert calls["argv"][:2] == [str(toolchain.python), "-I"]
    assert Path(calls["argv"][2]).is_file()
    assert not Path(calls["argv"][3]).exists(), "the request file is gone afterwards"


def test_progress_lines_reach_the_step_and_other_lines_do_not(toolchain, tmp_path, monkeypatch):
    lines = ['{"progress": [3, 10], "note": "going"}', "chatter", '{"broken', '{"note": "n"}']
    fake_run(monkeypatch, lines, {})
    step = Updates()
    run_worker(toolchain, "scan_weights", {}, log_path=tmp_path / "l", step=step)
    assert step.seen == [(3, 10, "going"), (None, None, "n")]


def test_an_explained_error_becomes_a_stage_error(toolchain, tmp_path, monkeypatch):
    fake_run(monkeypatch, response={"error": {"message": "tensor x holds NaN", "hint": "again"}})
    with pytest.raises(StageError, match="tensor x holds NaN") as caught:
        run_worker(toolchain, "scan_weights", {}, log_path=tmp_path / "l")
    assert caught.value.hint == "again"


def test_a_worker_without_response_is_a_command_error_with_the_tail(
    toolchain, tmp_path, monkeypatch
):
    (tmp_path / "l").write_text("Segmentation fault\n", encoding="utf-8")
    fake_run(monkeypatch)
    with pytest.raises(CommandError, match="ended without a response") as caught:
        run_worker(toolchain, "scan_weights", {}, log_path=tmp_path / "l")
    assert caught.value.tail == "Segmentation fault"


def test_a_full_disk_is_told_with_the_workers_name(toolchain, tmp_path, monkeypatch):
    def run(argv, **_):
        raise CommandError("python failed", returncode=28, log_path=tmp_path / "l")

    monkeypatch.setattr(worker.process, "run", run)
    with pytest.raises(StoreError, match="the disk filled up while quantize_gguf was at work"):
        run_worker(toolchain, "quantize_gguf", {}, log_path=tmp_path / "l")


def test_environment_bounds_threads_and_keeps_workers_off_the_network(monkeypatch):
    monkeypatch.setattr(worker, "usable_cores", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("PYTHONPATH", "/leak")
    env = worker_environment({"X": "1"})
    assert env["OMP_NUM_THREADS"] == "3"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["X"] == "1"
    assert "PYTHONPATH" not in env


def test_the_users_thread_count_stands(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert worker_environment()["OMP_NUM_THREADS"] == "1"
