"""The HTTP side of one user: post a chat request and follow its stream as it comes.

Every request has a connection of its own, opened before the clock starts: a kept connection
that the server closes at the moment it is used again looks like a failure of the server.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import gevent.socket
import gevent.ssl
from answer import Answer
from geventhttpclient.response import HTTPParseError, HTTPSocketResponse
from reply import Reply
from settings import Settings
from wire import Wire

CHAT = "/v1/chat/completions"
MODELS = "/v1/models"


class ChatClient:
    """Requests to one endpoint with one user's settings."""

    def __init__(self, endpoint: str, settings: Settings, key: str | None) -> None:
        parts = urlsplit(endpoint.rstrip("/"))
        self.host = parts.hostname or "127.0.0.1"
        self.tls = gevent.ssl.create_default_context() if parts.scheme == "https" else None
        self.port = parts.port or (443 if self.tls else 80)
        self.settings = settings
        self.prefix = parts.path.removesuffix("/v1")
        self.headers = (
            f"Host: {parts.netloc.rpartition('@')[2]}\r\nUser-Agent: deployer-loadtest\r\n"
            "Accept: text/event-stream, application/json\r\nAccept-Encoding: identity\r\n"
            "Content-Type: application/json\r\nConnection: close\r\n"
        )
        if key:
            self.headers += f"Authorization: Bearer {key}\r\n"

    def connect(self) -> Any:
        """An open connection; OSError or TimeoutError where there is none to have."""
        address = (self.host, self.port)
        sock = gevent.socket.create_connection(address, self.settings.connect_timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            sock = self.tls.wrap_socket(sock, server_hostname=self.host)
        sock.settimeout(self.settings.timeout_s)
        return sock

    def _request(self, method: str, path: str, body: bytes) -> bytes:
        head = f"{method} {self.prefix}{path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n"
        return (head + self.headers + "\r\n").encode("latin-1") + body

    def model(self) -> str:
        """The first model the server lists, "" where it lists none."""
        try:
            sock = self.connect()
            sock.sendall(self._request("GET", MODELS, b""))
            return str(json.loads(HTTPSocketResponse(sock).read())["data"][0]["id"])
        except (OSError, HTTPParseError, ValueError, LookupError, TypeError):
            return ""

    def request(
        self, model: str, messages: list[dict[str, str]], max_tokens: int, seed: int
    ) -> bytes:
        """The bytes of one chat request, made before the clock starts."""
        settings = self.settings
        body: dict[str, Any] = {
            "model": model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": settings.temperature,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if settings.ignore_eos:
            body["ignore_eos"] = True
        return self._request("POST", CHAT, json.dumps(body).encode())

    def exchange(self, request: bytes, answer: Answer) -> None:
        """Send one request and feed `answer` until its stream ends, well or badly."""
        wire = reply = failure = None
        answer.opened = time.monotonic()
        try:
            wire = Wire(self.connect())
            answer.sent = time.monotonic()
            wire.sock.sendall(request)
            reply = Reply(answer, wire)
            wire.read(reply.take, self.settings.timeout_s)
        except TimeoutError as error:
            failure = ("timeout", error)
        except (OSError, HTTPParseError) as error:
            failure = ("truncated" if answer.status else "connect", error)
        finally:
            if wire is not None:
                wire.close()
        if reply is not None and answer.status not in (None, 200):
            answer.fail(_class_of(answer.status), _text(reply.body))
        elif failure and not answer.done:  # what follows [DONE] decides nothing any more
            answer.fail(*failure)


def _class_of(status: int) -> str:
    if status == 429:
        return "http_429"
    return "http_5xx" if status >= 500 else "http_4xx"


def _text(body: bytes) -> str:
    return " ".join(body.decode("utf-8", "replace").split())
