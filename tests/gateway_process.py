"""The real gateway as a process of its own, in front of engines that a test made up."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.process import Child, clean_environment, spawn


@dataclass
class Running:
    """A gateway that listens on `port` of the loopback; `log` is what it wrote."""

    port: int
    child: Child
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.child.log_path.read_text(encoding="utf-8", errors="replace")


def upstream(name: str, url: str, **changes: Any) -> dict[str, Any]:
    """A server of the table."""
    values = {
        "name": name, "instance": f"{name}.1", "url": url, "model": "engine-model",
        "engine": "llama.cpp", "bundle": "none", "digest": "0" * 64, "state": "ready", "slots": 4,
        "context": 512,
    }  # fmt: skip
    return {**values, **changes}


def table(upstreams: Sequence[Mapping[str, Any]], port: int = 0, **gateway: Any) -> dict[str, Any]:
    """A table with one route, `chat`, to all of the servers."""
    route = {"model": "chat", "to": {each["name"]: 1.0 for each in upstreams}}
    return {
        "deployment": "made-up", "generation": 1, "gateway": {"port": port, **gateway},
        "routes": [route], "upstreams": list(upstreams),
    }  # fmt: skip


@contextmanager
def running_gateway(folder: Path, told: Mapping[str, Any]) -> Iterator[Running]:
    """Start a gateway that goes by a table; killed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.json").write_text(json.dumps(told), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        port = listening.getsockname()[1]
        descriptor = listening.fileno()
        child = spawn(
            (sys.executable, "-m", "deployer.gateway", str(folder), "--fd", str(descriptor)),
            env=clean_environment(),
            log_path=folder / "gateway.log",
            descriptors=(descriptor,),
        )
    try:
        _await(port, child)
        yield Running(port, child, folder)
    finally:
        child.stop(grace=0.0)


def _await(port: int, child: Child) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise AssertionError(child.log_path.read_text(encoding="utf-8"))
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
                probe.sendall(
                    b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                )
                if b" 200 " in probe.recv(64):
                    return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("the gateway did not come up")
