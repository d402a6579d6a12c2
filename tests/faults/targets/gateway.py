"""What clients, engines and operators send to the gateway, read without a socket."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

from fuzzing import Target, Wrong
from mutating import json_bytes, mutate_bytes, mutate_json, mutate_text

from deployer.gateway.exposition import families, joined
from deployer.gateway.keys import read_keys
from deployer.gateway.refusals import Refusal
from deployer.gateway.requests import CHAT, COMPLETIONS, EMBEDDINGS, read_request
from deployer.gateway.routing import read_table
from deployer.gateway.sse import EventTooLong, Splitter, payload
from deployer.gateway.watch import StreamWatch, message_of
from targets.records import METRICS

KEYS: dict[str, Any] = {
    "version": 1,
    "keys": [
        {"id": "ops", "sha256": "ab" * 32, "created": "2026-01-31T12:00:00Z", "models": None,
         "requests_per_minute": 60, "tokens_per_minute": None, "concurrent": 4},
        {"id": "app-1", "sha256": "cd" * 32, "created": "2026-01-31T12:00:00Z",
         "models": ["chat"], "requests_per_minute": None, "tokens_per_minute": 1000,
         "concurrent": None},
    ],
}  # fmt: skip
UPSTREAM = {
    "name": "one", "instance": "chat.one.1", "url": "http://127.0.0.1:8001", "model": "demo",
    "engine": "llama.cpp", "bundle": "b", "digest": "ab", "state": "ready", "slots": 2,
    "context": 512,
}  # fmt: skip
TABLE: dict[str, Any] = {
    "deployment": "chat", "generation": 3, "gateway": {"port": 8000, "max_waiting": 4},
    "routes": [{"model": "chat", "to": {"one": 1.0, "two": 0.5}, "sticky": "session"}],
    "upstreams": [UPSTREAM, {**UPSTREAM, "name": "two", "retiring": True}],
}  # fmt: skip


def _keys(rng: random.Random) -> bytes:
    return mutate_json(rng, KEYS)


def _check_keys(data: bytes, folder: Path) -> bool:
    path = folder / "keys.json"
    path.write_bytes(data)
    for key in read_keys(path).keys:
        if len(key.sha256) != 64:
            raise Wrong("a key without a digest")
    return True


def _table(rng: random.Random) -> bytes:
    return mutate_json(rng, TABLE)


def _check_table(data: bytes, folder: Path) -> bool:
    path = folder / "table.json"
    path.write_bytes(data)
    table = read_table(path)
    for route in table.routes:
        for name in route.to:
            table.upstream(name)
    return True


# Requests

BODIES: tuple[tuple[str, Any], ...] = (
    (CHAT, {"model": "chat", "stream": True, "stream_options": {"include_usage": True},
            "messages": [{"role": "system", "content": "Be brief."},
                         {"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "max_tokens": 8, "n": 1, "temperature": 0.5, "user": "u", "stop": ["\n"]}),
    (COMPLETIONS, {"model": "chat", "prompt": ["Hi", [1, 2, 3]], "max_tokens": 8, "stream": False}),
    (EMBEDDINGS, {"model": "chat", "input": ["a", "b"], "encoding_format": "float"}),
)  # fmt: skip


def _request(rng: random.Random) -> bytes:
    number = rng.randrange(len(BODIES))
    body = mutate_json(rng, BODIES[number][1])
    if rng.random() < 0.1:  # as JSON is written by those who escape nothing
        body = body.decode("utf-8", "replace").encode("utf-8")
    return bytes([number]) + body


def _check_request(data: bytes, _folder: Path) -> bool:
    path, raw = BODIES[data[0] % len(BODIES)][0], data[1:]
    try:
        asked = read_request(path, raw)
    except Refusal as refusal:
        if refusal.status != 400 or not json.loads(refusal.body)["error"]["message"]:
            raise Wrong(f"refused with {refusal.status}") from refusal
        raise
    sent = json.loads(asked.for_server("engine"))
    told = {**json.loads(raw), "model": "engine"}
    if asked.stream:
        told["stream_options"] = {**(told.get("stream_options") or {}), "include_usage": True}
    if sent != told:
        raise Wrong("the engine gets another request than the client sent")
    return True


# Streams

CHUNK = {"id": "x", "choices": [{"index": 0, "delta": {"content": "word"}, "finish_reason": None}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}
ENDS = ("\n\n", "\n\n", "\n\n", "\r\n\r\n", "\r\r", "\n\r\n", "\n")


def _stream(rng: random.Random) -> bytes:
    """A seed for where it is cut, then an engine's stream with something wrong."""
    parts = []
    for _ in range(rng.randrange(8)):
        event = mutate_json(rng, rng.choice((CHUNK, USAGE))) if rng.random() < 0.3 else None
        event = event or json_bytes(rng.choice((CHUNK, CHUNK, USAGE, {"error": {"message": "x"}})))
        field = rng.choice(
            (b"data: ", b"data: ", b"data:", b"data", b"error: ", b": ", b"id: 1\nx")
        )
        parts += [field, event, rng.choice(ENDS).encode()]
    parts.append(rng.choice((b"data: [DONE]\n\n", b"data: [DONE]", b"", b"data: [DO")))
    stream = b"".join(parts)
    if rng.random() < 0.5:
        stream = mutate_bytes(rng, stream)
    if rng.random() < 0.01:
        stream += b"data: " + b"x" * (3 << 20)
    return struct.pack("<I", rng.randrange(2**32)) + stream


def _events(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    """(the payloads, all bytes that came out and are held) of a stream that came in pieces."""
    splitter, out = Splitter(), []
    for piece in pieces:
        out += splitter.feed(piece)
    payloads = [value for event in out if (value := payload(event)) is not None]
    return payloads, b"".join(out) + splitter.rest


def _check_stream(data: bytes, _folder: Path) -> bool:
    """Wherever a stream is cut, the events are the same, and no byte is lost or added."""
    rng, stream = random.Random(data[:4]), data[4:]
    cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.choice((1, 3, 20))))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole, cut = _events([stream]), _events(pieces)
    if whole[1] != stream or cut[1] != stream:
        raise Wrong("bytes were lost or added")
    if whole[0] != cut[0]:
        raise Wrong(f"cut otherwise, the events are others: {whole[0][:3]} {cut[0][:3]}")
    return _watch(pieces)


def _watch(pieces: list[bytes]) -> bool:
    """Watch the stream as the proxy does."""
    splitter, watch, now = Splitter(), StreamWatch(keep_usage=False), 0.0
    for piece in pieces:
        for event in splitter.feed(piece):
            now += 0.01
            watch.take(event, now)
    if watch.done and watch.failure is not None:
        raise Wrong("a stream that both ended well and failed")
    return watch.done and (watch.tpot is None or watch.tpot >= 0)


# Figures of engines, and their errors


def _figures(rng: random.Random) -> bytes:
    text = rng.choice(METRICS)
    if rng.random() < 0.6:
        return mutate_text(rng, text).encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, text.encode(), [each.encode() for each in METRICS])


def _check_figures(data: bytes, _folder: Path) -> bool:
    """Whatever an engine writes, what is passed on can be read again and is all good."""
    found, wrong = families(data.decode("utf-8", "replace"))
    lines = joined((("one", family) for family in found.values()), "deployer_server")
    text = "".join(f"{line}\n" for line in lines)
    again, bad = families(text)
    if bad:
        raise Wrong(f"{bad} of our own lines are wrong: {text[:500]!r}")
    if sum(len(each.lines) for each in again.values()) != sum(
        len(each.lines) for each in found.values()
    ):
        raise Wrong("figures were lost on the way")
    return not wrong


def _error(rng: random.Random) -> bytes:
    return mutate_json(
        rng, {"error": {"message": "the context is 512", "type": "exceed_context_size_error"}}
    )


def _check_error(data: bytes, _folder: Path) -> bool:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return len(message_of(body)) > 0


GATEWAY = (
    Target("keys", "gateway.keys.read_keys", _keys, _check_keys),
    Target("table", "gateway.routing.read_table", _table, _check_table, (ValueError, OSError)),
    Target("request", "gateway.requests.read_request", _request, _check_request, (Refusal,)),
    Target("stream", "gateway.sse, gateway.watch", _stream, _check_stream, (EventTooLong,)),
    Target("figures", "gateway.exposition (engines' metrics)", _figures, _check_figures, ()),
    Target("errors", "gateway.watch.message_of (engines' errors)", _error, _check_error, ()),
)
