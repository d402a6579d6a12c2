"""A fake model hub on the loopback: the few answers that huggingface_hub asks for.

It keeps one model and one data set with the same files in memory, honours byte ranges, and can
refuse, vanish or cut a download short. As a program it prints its endpoint and serves until it is
ended:

    python fake_hub.py [status [error-code]]
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" + "0" * 34
REPOSITORY = "some/model"
DATASET = "some/texts"
GATED = (403, "GatedRepo")
ABSENT = (404, "RepoNotFound")
NO_REVISION = (404, "RevisionNotFound")


@dataclass
class FakeHub:
    """The hub's content and moods; `requests` lists what it was asked (method, path, range).

    `refusal` is (status, error code) for every request; `cuts` maps a file to the number of its
    bytes after which the connection breaks, once; `lies` maps a file to another SHA-256.
    """

    files: Mapping[str, bytes]
    refusal: tuple[int, str] | None = None
    cuts: dict[str, int] = field(default_factory=dict)
    lies: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    endpoint: str = ""

    def served(self, name: str, repository: str = REPOSITORY) -> list[str]:
        """The ranges in which a file was downloaded; "" stands for all of it."""
        path = f"/{repository}/resolve/{COMMIT}/{name}"
        return [asked for method, there, asked in self.requests if (method, there) == ("GET", path)]

    def sha256(self, name: str) -> str:
        return self.lies.get(name) or hashlib.sha256(self.files[name]).hexdigest()

    def describe(self, repository: str) -> dict[str, Any]:
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": hashlib.sha1(content).hexdigest(),
                "lfs": {"sha256": self.sha256(name), "size": len(content), "pointerSize": 130}
                if name.endswith((".safetensors", ".bin", ".parquet"))
                else None,
            }
            for name, content in self.files.items()
        ]
        return {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings,
                "tags": [], "downloads": 0, "likes": 0, "private": False}  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = self.path.partition("?")[0], self.hub
        asked = self.headers.get("Range", "")
        hub.requests.append((self.command, path, asked))
        if hub.refusal:
            status, code = hub.refusal
            self.answer(status, b"{}", {"X-Error-Code": code})
        elif path.startswith(f"/api/models/{REPOSITORY}"):
            self.describe(REPOSITORY, path)
        elif path.startswith(f"/api/datasets/{DATASET}"):
            self.describe(DATASET, path)
        elif path.startswith((f"/{REPOSITORY}/resolve/", f"/datasets/{DATASET}/resolve/")):
            self.send_file(path.rpartition(f"/{COMMIT}/")[2], asked)
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def describe(self, repository: str, path: str) -> None:
        revision = path.partition("/revision/")[2]
        if revision in ("", "main", "v1", COMMIT):
            self.answer(200, json.dumps(self.hub.describe(repository)).encode(), {})
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def send_file(self, name: str, asked: str) -> None:
        content = self.hub.files.get(name)
        if content is None:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{self.hub.sha256(name)}"',
            "Accept-Ranges": "bytes",
        }
        match = re.match(r"bytes=(\d+)-(\d*)$", asked)
        if not match:
            self.answer(
                200, content, headers, self.hub.cuts.pop(name, None) if self.is_get else None
            )
            return
        begin = int(match[1])
        end = min(int(match[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
        self.answer(206, content[begin : end + 1], headers)

    @property
    def is_get(self) -> bool:
        return self.command == "GET"

    def answer(
        self, status: int, body: bytes, headers: Mapping[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.is_get:
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Run the hub until the context is left."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    given = (int(sys.argv[1]), "".join(sys.argv[2:3])) if sys.argv[1:] else None
    with serve(FakeHub({}, refusal=given)) as running:
        print(running.endpoint, flush=True)
        while True:
            time.sleep(60)
