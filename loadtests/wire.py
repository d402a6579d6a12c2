"""A connection whose bytes are told as they arrive, with the kernel's time where it tells.

A client that is busy reads a chunk some milliseconds after it came, the later the more streams it
has. On Linux the kernel stamps what arrives, so that latencies do not depend on when the client
got round to reading. What is encrypted, and other systems, are stamped when they are read.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import AsyncResult

SIZE = 16 * 1024
SO_TIMESTAMPNS = 35
"""Of Linux on nearly all processors with 64 bits; Python has no name for it."""
_STAMP = struct.Struct("qq")
_KNOWN = sys.platform == "linux" and struct.calcsize("l") == 8
_SPACE = socket.CMSG_SPACE(_STAMP.size) if _KNOWN else 0

Take = Callable[[bytes], bool]
"""Is given what arrived, b"" at the end of the connection; says whether that is enough."""


class Wire:
    """The reading end of a gevent socket; `arrived` is when the bytes last given came, in seconds.

    Times are of the monotonic clock. The kernel's stamps are of the wall clock, which may be set:
    so only their age counts, and it is never more than the time since the read before.
    """

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.arrived = self._read_at = time.monotonic()
        self._encrypted = hasattr(sock, "cipher")
        self._stamped = _KNOWN and not self._encrypted and _ask_for_stamps(sock)

    def read(self, take: Take, timeout: float) -> None:
        """Give `take` what comes until it has enough.

        Raises TimeoutError after `timeout` seconds without anything, OSError where the connection
        breaks, and what `take` raises.
        """
        if self._encrypted:
            self.sock.settimeout(timeout)
            while not take(self._received()):
                pass
        else:
            self._read_as_it_comes(take, timeout)

    def _read_as_it_comes(self, take: Take, timeout: float) -> None:
        """In the event loop itself, which costs less than waking a greenlet for each chunk."""
        over: AsyncResult = AsyncResult()
        self.sock.setblocking(False)
        watcher = gevent.get_hub().loop.io(self.sock.fileno(), 1)

        def readable() -> None:
            try:
                if not take(self._received()):
                    return
                over.set()
            except BlockingIOError:
                return
            except Exception as error:
                over.set_exception(error)
            watcher.stop()

        begun = time.monotonic()
        watcher.start(readable)
        try:
            while not over.ready():
                left = max(begun, self._read_at) + timeout - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"nothing came for {timeout:g} s")
                over.wait(left)
            over.get()
        finally:
            watcher.stop()
            watcher.close()

    def _received(self) -> bytes:
        if not self._stamped:
            data: bytes = self.sock.recv(SIZE)
            self.arrived = self._read_at = time.monotonic()
            return data
        data, told, _, _ = self.sock.recvmsg(SIZE, _SPACE)
        now, age = time.monotonic(), 0.0
        if told and told[0][1] == SO_TIMESTAMPNS:
            seconds, nanoseconds = _STAMP.unpack(told[0][2])
            age = time.time() - (seconds + nanoseconds * 1e-9)
        self.arrived = now - min(max(age, 0.0), now - self._read_at)
        self._read_at = now
        return data

    def close(self) -> None:
        self.sock.close()


def _ask_for_stamps(sock: Any) -> bool:
    """Whether the kernel will tell when bytes arrive on this connection."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True
