"""The leader of a load test: gives work to processes on other machines, takes their requests back.

Over HTTP, below a secret path that is in the address they are started with:

    GET  /SECRET/job?name=N&after=J        the job after J; 204 not yet, 409 enough others, 410 over
    POST /SECRET/progress?name=N           a line of progress
    POST /SECRET/measured?name=N&age=S     a worker's report, then its requests, one JSON a line

Locust's own messages, which start and end the users, go to the next port. Clocks of machines
differ, so a worker tells how many seconds ago it started, and its times are moved to this
machine's clock: to within the time that a message takes. Latencies are differences of one clock.
"""

from __future__ import annotations

import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import deployer
from deployer.errors import LoadTestError, UsageError
from deployer.loadtest.crew import Crew
from deployer.metrics import Sample

EVERYWHERE = ("0.0.0.0", "::")
JOIN_S = 600.0
"""How long the leader waits for its workers."""
HOLD_S = 10.0
"""How long a question for a job is held while there is none."""
BRING_S = 60.0
"""How long a worker may take to bring what it measured."""
PARTING_S = 3.0
"""How long the leader stays for its workers to learn that it is over."""
SHUTDOWN_S = 0.05
MOST_BYTES = 1 << 32


@dataclass(frozen=True)
class Address:
    """Where the leader listens; Locust's master takes the next port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read HOST:PORT; raises UsageError."""
        host, _, port = text.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65535:
            raise UsageError(f"{text!r} is no address to listen at", "Write it like 10.0.0.5:5570.")
        return cls(host.strip("[]"), int(port))

    @property
    def name(self) -> str:
        """How others find it."""
        host = socket.gethostname() if self.host in EVERYWHERE else self.host
        return f"[{host}]" if ":" in host else host


class Leader(Crew):
    """A crew of `size` processes that others start. A context manager: at its end they go."""

    patience = JOIN_S

    def __init__(self, size: int, address: Address) -> None:
        super().__init__(size)
        self.address = address
        self.secret = secrets.token_urlsafe(12)
        self._change = threading.Condition()
        self._number = 0
        self._job: Mapping[str, Any] = {}
        self._known: set[str] = set()
        self._taken: set[str] = set()
        self._on_line: Callable[[str], None] = lambda _: None
        self._brought: dict[str, tuple[Mapping[str, Any], tuple[Sample, ...]]] = {}
        self._over = False
        self._parted: set[str] = set()

    @property
    def url(self) -> str:
        """What `deployer loadtest join` is given."""
        return f"http://{self.address.name}:{self.address.port}/{self.secret}"

    def __enter__(self) -> Leader:
        handler = type("Handler", (_Handler,), {"leader": self})
        try:
            self._server = _Server((self.address.host, self.address.port), handler)
        except OSError as error:
            raise LoadTestError(
                f"cannot listen at {self.address.host}:{self.address.port}: {error.strerror}",
                "Name another address with --listen.",
            ) from error
        threading.Thread(target=self._server.serve_forever, args=(SHUTDOWN_S,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._over = True
            self._change.notify_all()
            self._change.wait_for(lambda: self._parted.issuperset(self._known), PARTING_S)
        self._server.shutdown()
        self._server.server_close()

    # What the driver asks

    def arguments(self) -> list[str]:
        return [
            "--master", "--expect-workers", str(self.size),
            "--expect-workers-max-wait", str(int(self.patience)),
            "--master-bind-host", self.address.host,
            "--master-bind-port", str(self.address.port + 1),
        ]  # fmt: skip

    def begin(
        self,
        told: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        on_line: Callable[[str], None],
    ) -> None:
        with self._change:
            self._number += 1
            self._taken, self._brought = set(), {}
            self._on_line = on_line
            self._job = {
                "number": self._number, "version": deployer.__version__,
                "locust_port": self.address.port + 1, "settings": dict(told), "plan": list(rows),
            }  # fmt: skip
            self._change.notify_all()

    def collect(self, folder: Path) -> None:
        """Write what was brought; what is missing the driver finds out."""
        with self._change:
            self._change.wait_for(lambda: len(self._brought) >= self.size, BRING_S)
            brought = list(self._brought.values())
        for number, (report, samples) in enumerate(brought):
            text = "".join(json.dumps(sample.as_json()) + "\n" for sample in samples)
            (folder / f"samples-{number}.jsonl").write_text(text, encoding="utf-8")
            (folder / f"worker-{number}.json").write_text(json.dumps(report), encoding="utf-8")

    # What the workers ask, each in a thread of its own

    def job(self, name: str, after: int) -> tuple[HTTPStatus, Mapping[str, Any]]:
        """The job that follows number `after`; who only waits for it takes nobody's place."""
        with self._change:
            self._known.add(name)
            self._change.wait_for(lambda: self._over or self._number > after, HOLD_S)
            if self._over:
                self._parted.add(name)
                self._change.notify_all()
                return HTTPStatus.GONE, {}
            if self._number <= after:
                return HTTPStatus.NO_CONTENT, {}
            if name not in self._taken and len(self._taken) >= self.size:
                return HTTPStatus.CONFLICT, {}
            self._taken.add(name)
            return HTTPStatus.OK, self._job

    def progress(self, name: str, line: str) -> None:
        """A worker's line of progress; processes of two machines may have the same number."""
        word, _, told = line.partition(" ")
        state = {**json.loads(told), "pid": name}
        with self._change:
            self._on_line(f"{word} {json.dumps(state)}")

    def measured(self, name: str, age: float, lines: Iterable[bytes]) -> None:
        """Keep what a worker measured, on this machine's clock; ValueError where it is no such."""
        arrived = time.monotonic()
        report, *records = (json.loads(line) for line in lines)
        moved = arrived - age - float(report["started"])
        report = {**report, **{k: report[k] + moved for k in ("started", "stopping")}}
        samples = tuple(Sample.from_json(record).shifted(-moved) for record in records)
        with self._change:
            if name in self._taken:
                self._brought[name] = (report, samples)
            self._change.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A worker that goes away while it waits is no fault to show."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One request of a worker; `leader` is set by the class made for it."""

    leader: Leader
    protocol_version = "HTTP/1.1"
    timeout = 120

    def do_GET(self) -> None:
        path, asked = self._asked()
        if path != "job":
            return self._say(HTTPStatus.NOT_FOUND)
        after = _number(asked.get("after"))
        return self._say(*self.leader.job(asked.get("name", ""), after))

    def do_POST(self) -> None:
        path, asked = self._asked()
        length = _number(self.headers.get("Content-Length"))
        if path not in ("progress", "measured") or not 0 < length <= MOST_BYTES:
            self.close_connection = True  # what was sent is not read
            return self._say(HTTPStatus.NOT_FOUND)
        name = asked.get("name", "")
        try:
            if path == "progress":
                self.leader.progress(name, self.rfile.read(length).decode("utf-8"))
            else:
                lines = self.rfile.read(length).splitlines()
                self.leader.measured(name, float(asked["age"]), lines)
        except (ValueError, LookupError, TypeError, AttributeError):
            return self._say(HTTPStatus.BAD_REQUEST)
        return self._say(HTTPStatus.OK)

    def _asked(self) -> tuple[str, dict[str, str]]:
        """(what is asked for, its parameters); "" for whoever does not know the secret."""
        parts = urlsplit(self.path)
        secret, _, path = parts.path.removeprefix("/").partition("/")
        known = secrets.compare_digest(secret.encode(), self.leader.secret.encode())
        asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        return (path if known else ""), asked

    def _say(self, status: HTTPStatus, document: Mapping[str, Any] | None = None) -> None:
        body = b"" if status is HTTPStatus.NO_CONTENT else json.dumps(document or {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *_: object) -> None:
        return


def _number(text: str | None) -> int:
    """A number that somebody sent; 0 where it is none."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 20 else 0
