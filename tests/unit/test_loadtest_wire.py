"""When bytes arrived, although they were read later."""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Iterator

import gevent.socket
import pytest
from loadtest_modules import wire as module

SO_TIMESTAMPNS, Wire = module.SO_TIMESTAMPNS, module.Wire
LATE = 0.05
linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's stamps are Linux's")


@pytest.fixture
def pair() -> Iterator[tuple[gevent.socket.socket, socket.socket]]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = gevent.socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
        with here, there:
            yield here, there


def first(wire: Wire) -> bytes:
    """The first bytes that come."""
    got: list[bytes] = []

    def take(data: bytes) -> bool:
        got.append(data)
        return True

    wire.read(take, 2.0)
    return got[0]


@linux
def test_what_is_read_late_is_stamped_when_it_came(
    pair: tuple[gevent.socket.socket, socket.socket],
) -> None:
    wire = Wire(pair[0])
    for _ in range(3):
        sent = time.monotonic()
        pair[1].sendall(b"chunk")
        time.sleep(LATE)
        assert first(wire) == b"chunk"
        assert wire.arrived - sent < LATE / 2
        assert wire.arrived >= sent - 0.001


def test_without_the_kernels_stamps_the_time_of_reading_counts(
    pair: tuple[gevent.socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ask_for_stamps", lambda _: False)
    wire = Wire(pair[0])
    pair[1].sendall(b"chunk")
    before = time.monotonic()
    assert first(wire) == b"chunk"
    assert wire.arrived >= before


class Clock:
    """A socket whose stamps are of a wall clock that somebody sets."""

    def __init__(self, stamps: list[float]) -> None:
        self.stamps = stamps

    def setsockopt(self, *_: int) -> None:
        return

    def recvmsg(self, *_: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        stamp = struct.pack("qq", *divmod(int(self.stamps.pop(0) * 1e9), 10**9))
        return b"x", [(1, SO_TIMESTAMPNS, stamp)], 0, None


@linux
def test_a_wall_clock_that_jumps_moves_no_time() -> None:
    wire = Wire(Clock([time.time() + 3600, time.time() - 3600]))
    begun = time.monotonic()
    wire._received()
    early = wire.arrived
    assert begun <= early <= time.monotonic(), "a stamp of the future is now"
    wire._received()
    assert early <= wire.arrived, "nothing came before what was read before"


def test_an_ended_connection_is_read_and_closed(
    pair: tuple[gevent.socket.socket, socket.socket],
) -> None:
    wire = Wire(pair[0])
    pair[1].close()
    assert first(wire) == b""
    wire.close()
    assert pair[0].fileno() == -1


def test_silence_is_a_timeout(pair: tuple[gevent.socket.socket, socket.socket]) -> None:
    pair[1].sendall(b"chunk")
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="nothing came for"):
        Wire(pair[0]).read(lambda _: False, 0.1)
    assert 0.1 <= time.monotonic() - begun < 1.0


def test_what_the_reader_raises_comes_out(
    pair: tuple[gevent.socket.socket, socket.socket],
) -> None:
    def take(_: bytes) -> bool:
        raise ValueError("no HTTP")

    pair[1].sendall(b"chunk")
    with pytest.raises(ValueError, match="no HTTP"):
        Wire(pair[0]).read(take, 2.0)
