"""What systemd is told: real datagrams on a real socket."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.serving.notify import Notify
from deployer.serving.state import ServerRecord

RECORD = ServerRecord(
    name="demo", endpoint="http://127.0.0.1:8080", supervisor_pid=1, engine_pid=2, bundle="b",
    log="l", state="starting", server="xllamacpp", model="smollm2",
)  # fmt: skip


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest) -> Iterator[tuple[str, socket.socket]]:
    """(the address as systemd gives it, the socket)."""
    with (
        tempfile.TemporaryDirectory(prefix="notify-") as folder,  # short: a path has 108 bytes
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard,
    ):
        path = str(Path(folder) / "s")
        heard.bind("\0" + path if request.param == "abstract" else path)
        heard.settimeout(5)
        yield ("@" + path if request.param == "abstract" else path), heard


def told(heard: socket.socket) -> list[str]:
    return heard.recv(4096).decode().split("\n")


def test_a_message_is_one_datagram(listener: tuple[str, socket.socket]) -> None:
    address, heard = listener
    Notify(address).tell("READY=1", "STATUS=two\nlines and ü")
    assert told(heard) == ["READY=1", "STATUS=two lines and ü"]


def test_states_are_told_as_systemd_knows_them(listener: tuple[str, socket.socket]) -> None:
    address, heard = listener
    states = {
        "starting": {},
        "ready": {"ready_seconds": 1.25},
        "draining": {},
        "failed": {"error": {"message": "the server ended\n  | log line"}},
    }
    for state, more in states.items():
        Notify(address).tell_state(RECORD.model_copy(update={"state": state, **more}))
    assert [told(heard) for _ in states] == [
        ["STATUS=starting"],
        ["READY=1", "STATUS=ready: smollm2 at http://127.0.0.1:8080 after 1.2 s"],
        ["STOPPING=1", "STATUS=draining: running requests finish"],
        ["STATUS=failed: the server ended"],
    ]


def test_life_is_shown_three_times_within_the_time_and_only_while_there_is_life(
    listener: tuple[str, socket.socket],
) -> None:
    address, heard = listener
    answers = iter([True, False, True])
    started = time.monotonic()
    Notify(address, watchdog=0.15).watch(lambda: next(answers, False))
    assert [told(heard), told(heard)] == [["WATCHDOG=1"]] * 2
    assert time.monotonic() - started >= 0.1, "the second time it did not live"
    heard.settimeout(0.2)
    with pytest.raises(TimeoutError):
        told(heard)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Notify()),
        ({"NOTIFY_SOCKET": "/run/s"}, Notify("/run/s")),
        ({"NOTIFY_SOCKET": "@s", "WATCHDOG_USEC": "3000000"}, Notify("@s", 3.0)),
        ({"NOTIFY_SOCKET": "@s", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, Notify("@s", 3)),
        ({"NOTIFY_SOCKET": "@s", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, Notify("@s")),
        ({"NOTIFY_SOCKET": "@s", "WATCHDOG_USEC": "soon"}, Notify("@s")),
        ({"NOTIFY_SOCKET": "@s", "WATCHDOG_USEC": "0"}, Notify("@s")),
        ({"NOTIFY_SOCKET": "vsock:2:1"}, Notify()),
        ({"WATCHDOG_USEC": "3000000"}, Notify()),
    ],
)
def test_what_systemd_asks_for(environment: dict[str, str], expected: Notify) -> None:
    assert Notify.of(environment, pid=7) == expected


def test_nobody_who_listens_is_no_error() -> None:
    Notify("/nowhere/at/all").tell("READY=1")
    Notify("@nobody-" + str(os.getpid())).tell("READY=1")
    Notify().tell("READY=1")
