"""Tell systemd how a server is: the sd_notify protocol, one datagram for each message.

Written here since it is one `sendto`: the package sdnotify had its last release in 2017, and
systemd-python is compiled against libsystemd.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deployer.serving.state import ServerRecord

FEEDS = 3
"""How often life is shown within the time systemd gives, so that one late answer kills nothing."""
SEND_SECONDS = 1.0


@dataclass(frozen=True)
class Notify:
    """Where to tell it, and how often life must be shown.

    `address` is a path or, with a leading @, an abstract name; None where nobody asked.
    `watchdog` is the time in seconds after which systemd takes us for hung; None: it does not.
    """

    address: str | None = None
    watchdog: float | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str], pid: int) -> Notify:
        """What systemd asks process `pid` for, by NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        micros = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        watched = ours and micros.isdecimal() and int(micros) > 0
        return cls(address, int(micros) / 1e6 if watched else None)

    def tell(self, *assignments: str) -> None:
        """Send assignments such as READY=1; a server does not end because nobody listens."""
        if self.address is None:
            return
        abstract = self.address.startswith("@")
        where = "\0" + self.address[1:] if abstract else self.address
        message = "\n".join(" ".join(each.split()) for each in assignments)
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out,
        ):
            out.settimeout(SEND_SECONDS)
            out.sendto(message.encode(), where)

    def tell_state(self, record: ServerRecord) -> None:
        """Tell what a server's record says: its state, ready and stopping as systemd knows them."""
        told = f"STATUS={record.state}"
        if record.state == "ready":
            after = f" after {record.ready_seconds:.1f} s" if record.ready_seconds else ""
            self.tell("READY=1", f"{told}: {record.model} at {record.endpoint}{after}")
        elif record.state == "draining":
            self.tell("STOPPING=1", f"{told}: running requests finish")
        elif record.state == "failed" and record.error:
            self.tell(f"{told}: {str(record.error.get('message')).partition(chr(10))[0]}")
        else:
            self.tell(told)

    def watch(self, alive: Callable[[], bool]) -> None:
        """Show life for as long as this process runs and `alive` holds, where systemd wants it."""
        if self.watchdog is not None:
            threading.Thread(target=self._feed, args=(self.watchdog, alive), daemon=True).start()

    def _feed(self, seconds: float, alive: Callable[[], bool]) -> None:
        pause = threading.Event()
        while True:
            if alive():
                self.tell("WATCHDOG=1")
            pause.wait(seconds / FEEDS)
