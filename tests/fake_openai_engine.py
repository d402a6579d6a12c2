"""An engine without a model that answers whatever the OpenAI API allows, as the API describes it.

For tests of what stands in front of an engine. It never refuses and reads no more of a request
than it must; fake_sse_server.py is the one that does things wrong.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "fake-model"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CREATED = 1_700_000_000


def _chat(message: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "created": CREATED, "model": MODEL, "object": message}


def _answers(path: str) -> dict[str, Any]:
    if path == "/v1/chat/completions":
        said = {"role": "assistant", "content": "two words"}
        choice = {"index": 0, "message": said, "finish_reason": "stop", "logprobs": None}
        return {**_chat("chat.completion"), "choices": [choice], "usage": USAGE}
    if path == "/v1/completions":
        choice = {"index": 0, "text": "two words", "finish_reason": "stop", "logprobs": None}
        return {**_chat("text_completion"), "choices": [choice], "usage": USAGE}
    vector = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return {"object": "list", "data": [vector], "model": MODEL, "usage": usage}


def _events(path: str, usage: bool) -> Iterator[dict[str, Any]]:
    chat = path == "/v1/chat/completions"
    about = _chat("chat.completion.chunk" if chat else "text_completion")
    for word in ("two", " words"):
        said = {"delta": {"content": word}} if chat else {"text": word}
        yield {**about, "choices": [{"index": 0, **said, "finish_reason": None}]}
    said = {"delta": {}} if chat else {"text": ""}
    yield {**about, "choices": [{"index": 0, **said, "finish_reason": "stop"}]}
    if usage:
        yield {**about, "choices": [], "usage": USAGE}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        models = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        self._send(b"" if self.path == "/metrics" else json.dumps(models).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not body.get("stream"):
            self._send(json.dumps(_answers(self.path)).encode())
            return
        wanted = (body.get("stream_options") or {}).get("include_usage") is True
        events = [f"data: {json.dumps(event)}\n\n" for event in _events(self.path, wanted)]
        self._send("".join([*events, "data: [DONE]\n\n"]).encode(), "text/event-stream")

    def _send(self, data: bytes, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is no news."""


@contextmanager
def serve() -> Iterator[str]:
    """Serve on a free loopback port; gives the URL."""
    server = _Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
