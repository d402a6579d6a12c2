"""The guard of conftest.py itself: an unmarked test can start nothing and reach nobody."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from guard import GUARD

from deployer.home import default_home

Refused = pytest.fail.Exception


def test_no_process_starts() -> None:
    with pytest.raises(Refused, match="started a process"):
        subprocess.run(["true"], check=True)


def test_no_fork() -> None:
    with pytest.raises(Refused, match="started a process"):
        os.system("true")


def test_nothing_leaves_the_loopback() -> None:
    with socket.socket() as sock, pytest.raises(Refused, match=r"192\.0\.2\.1"):
        sock.connect(("192.0.2.1", 80))


def test_no_host_name_is_looked_up() -> None:
    with pytest.raises(Refused, match=r"model-hub\.invalid"):
        socket.getaddrinfo("model-hub.invalid", 443)


def test_the_loopback_stays_open() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5),
    ):
        assert GUARD.active


def test_the_users_home_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GUARD, "user_home", "/nowhere/home")
    with pytest.raises(Refused, match="wrote to the user's home"):
        Path("/nowhere/home/notes.txt").write_text("x")


def test_each_test_has_a_home_of_its_own(tmp_path: Path) -> None:
    assert default_home().root.is_relative_to(tmp_path)
    assert Path.home().is_relative_to(tmp_path)
