"""The guard of conftest.py: it sees what a test does through the interpreter's audit hook."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

PROCESS_EVENTS = frozenset(
    {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system"}
)
ADDRESS_EVENTS = frozenset({"socket.connect", "socket.sendto"})
NAME_EVENTS = frozenset({"socket.getaddrinfo", "socket.gethostbyname"})
LOOPBACK = ("127.", "::1", "localhost")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
REPOSITORY = Path(__file__).resolve().parent.parent


class Guard:
    """Fails the running test when it starts a process, leaves the loopback or writes home."""

    def __init__(self) -> None:
        self.active = False
        self.user_home = str(Path.home())
        self.allowed: tuple[str, ...] = (str(REPOSITORY),)

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.active:
            return
        if event in PROCESS_EVENTS:
            self.refuse(f"started a process ({event} {arguments[0]!r})")
        elif event in ADDRESS_EVENTS:
            address = arguments[-1]
            if isinstance(address, tuple) and not self.is_loopback(address[0]):
                self.refuse(f"left the loopback (to {address[0]!r})")
        elif event in NAME_EVENTS:
            if not self.is_loopback(arguments[0]):
                self.refuse(f"looked a host name up ({arguments[0]!r})")
        elif event == "open":
            path, _mode, flags = arguments
            if isinstance(flags, int) and flags & WRITING:
                self.check_path(path)
        elif event == "os.mkdir":
            self.check_path(arguments[0])

    def is_loopback(self, host: object) -> bool:
        name = host.decode() if isinstance(host, bytes) else host
        return name in (None, "") or (isinstance(name, str) and name.startswith(LOOPBACK))

    def check_path(self, path: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 (runs on every open)
        below = name.startswith(self.user_home + os.sep) and self.user_home != os.sep
        if below and "__pycache__" not in name and not name.startswith(self.allowed):
            self.refuse(f"wrote to the user's home ({name})")

    def refuse(self, what: str) -> None:
        self.active = False  # what pytest does next is not the test's doing
        pytest.fail(f"a test that is not marked `integration` {what}", pytrace=True)


GUARD = Guard()
sys.addaudithook(GUARD)
