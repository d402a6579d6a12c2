"""Broken HTTP: what clients that are ill or ill-meaning send, and what engines that are ill do."""

from __future__ import annotations

import random

from mutating import json_bytes, mutate_bytes, mutate_json, mutate_tree

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
CHUNK = {"choices": [{"index": 0, "delta": {"content": "word"}, "finish_reason": None}]}
ANSWER = {"choices": [{"message": {"role": "assistant", "content": "word"}}],
          "usage": {"prompt_tokens": 3, "completion_tokens": 1}}  # fmt: skip


# Answers of engines


def good_stream() -> bytes:
    events = b"".join(b"data: " + json_bytes(CHUNK) + b"\n\n" for _ in range(3))
    usage = {"choices": [], "usage": ANSWER["usage"]}
    return events + b"data: " + json_bytes(usage) + b"\n\ndata: [DONE]\n\n"


def framed(body: bytes, kind: str, chunked: bool, pieces: int = 1) -> bytes:
    """A whole answer with status 200."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n"
    if not chunked:
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    size = max(1, len(body) // pieces)
    cut = [body[at : at + size] for at in range(0, len(body), size)]
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b"".join(
        b"%x\r\n%b\r\n" % (len(part), part) for part in [*cut, b""]
    )


def good_answer(streamed: bool) -> bytes:
    if streamed:
        return framed(good_stream(), "text/event-stream", chunked=True, pieces=5)
    return framed(json_bytes(ANSWER), "application/json", chunked=False)


def broken_answer(rng: random.Random, streamed: bool) -> bytes:
    """What an engine that is ill may send."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, good_answer(streamed))
    if not streamed:
        return framed(mutate_json(rng, ANSWER), "application/json", chunked=rng.random() < 0.5)
    body = good_stream()
    if rng.random() < 0.5:
        at = body.rindex(b"data: {") if rng.random() < 0.3 else rng.randrange(len(body))
        event = b"data: " + json_bytes(mutate_tree(rng, CHUNK)) + b"\n\n"
        body = body[:at] + event + body[at:]
    else:
        body = mutate_bytes(rng, body)
    return framed(body, "text/event-stream", chunked=True, pieces=rng.choice((1, 2, 9, 400)))


# Requests of clients


def request(body: bytes, path: str = "/v1/chat/completions", *headers: str) -> bytes:
    told = ["Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    head = "\r\n".join([f"POST {path} HTTP/1.1", *told, *headers])
    return head.encode() + b"\r\n\r\n" + body


def numbered(model: str, number: int, streamed: bool) -> bytes:
    """A good request that tells its number, so that the engine knows what to answer."""
    body = json_bytes({**CHAT, "model": model, "stream": streamed, "user": str(number)})
    return request(body, "/v1/chat/completions", "Connection: close")


def good(model: str = "chat") -> bytes:
    return request(
        json_bytes({**CHAT, "model": model}), "/v1/chat/completions", "Connection: close"
    )


HEADERS = (
    "Content-Length: 5", "Content-Length: -1", "Content-Length: 99999999999999999999",
    "Content-Length: 0x10", "Content-Length: 5, 5", "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: identity",
    "Transfer-Encoding: xchunked", "Transfer-Encoding:\tchunked", "Transfer-Encoding : chunked",
    "Expect: 100-continue",
    "Expect: nonsense", "Content-Encoding: gzip", "Content-Type: text/plain", "Upgrade: h2c",
    "Connection: Upgrade, HTTP2-Settings", "Authorization: Bearer x", "X-Request-Id: a b\tc",
    "X-Session-Id: " + "s" * 4000, "X: " + "y" * 9000, "X-Forwarded-For: 1.2.3.4", "\x00: x",
    "Folded: a\r\n b", "NoColon", ": empty", "Cookie: " + "c=1; " * 500, "Host: other",
    "Traceparent: 00-" + "0" * 32, "Accept-Encoding: br", "Range: bytes=0-1", "Content-Length: ٥",
)  # fmt: skip
STARTS = (
    "GET /health HTTP/1.1", "GET /metrics HTTP/1.1", "GET /openapi.json HTTP/1.1",
    "GET /v1/models HTTP/1.1", "POST /v1/completions HTTP/1.1", "POST /v1/embeddings HTTP/1.1",
    "GET /../etc/passwd HTTP/1.1", "GET //health HTTP/1.1", "GET /%2e%2e/ HTTP/1.1",
    "GET http://evil/health HTTP/1.1", "CONNECT evil:443 HTTP/1.1", "OPTIONS * HTTP/1.1",
    "TRACE / HTTP/1.1", "PRI * HTTP/2.0", "GET /health HTTP/0.9", "GET /health HTTP/9.9",
    "GET /health", "GET /v1/models", "GET /v1/models HTTP/0.9", "GET /v1/models HTTP/2.0",
    "POST /v1/chat/completions", "POST /v1/chat/completions HTTP/0.9",
    "POST /v1/chat/completions HTTP/2.0", "GET /v1/models HTTP/1.2", "GET /v1/models HTTP/",
    "get /health HTTP/1.1",
    "GET  /health  HTTP/1.1",
    "GET /" + "a" * 9000 + " HTTP/1.1",
    "POST /tokenize HTTP/1.1", "POST /v1/chat/completions?x=1 HTTP/1.0", "PUT /v1/models HTTP/1.1",
    "DELETE /v1/chat/completions HTTP/1.1", "GET /health\x00 HTTP/1.1",
    "\r\n\r\nGET /health HTTP/1.1",
)  # fmt: skip


def broken_request(rng: random.Random) -> bytes:
    """What a client that is ill, or ill-meaning, may send."""
    body = json_bytes({**CHAT, "stream": rng.random() < 0.5})
    way = rng.random()
    if way < 0.35:
        return request(mutate_json(rng, {**CHAT, "stream": True, "stop": ["x"], "n": 1}))
    if way < 0.55:
        return mutate_bytes(rng, request(body), [good()])
    lines = request(body).split(b"\r\n\r\n", 1)[0].decode().split("\r\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(HEADERS))
    if rng.random() < 0.5:
        lines[0] = rng.choice(STARTS)
    if rng.random() < 0.4:
        body = rng.choice(CHUNKED) if rng.random() < 0.7 else mutate_bytes(rng, body)
    text = "\r\n".join(lines).encode("utf-8", "surrogatepass")
    whole = text + rng.choice((b"\r\n\r\n",) * 8 + (b"\n\n", b"\r\n", b"")) + body
    return whole * rng.choice((1, 1, 1, 1, 2, 5))  # some come one behind the other


CHUNKED = (
    b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffffff\r\nx", b"-1\r\nx\r\n0\r\n\r\n",
    b"5;x=y\r\nhello\r\n",
    b"0\r\nX: y\r\n\r\n", b"5\nhello\n0\n\n", b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"1" * 4000, b"g\r\n", b"\r\n",
)  # fmt: skip
