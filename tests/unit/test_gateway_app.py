"""The gateway's doors: paths, keys, sizes, framing, and what it tells of itself."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_in_process import FakeEngine, Gate, gate, table, upstream

from deployer.errors import UsageError
from deployer.gateway.app import METHODS
from deployer.gateway.keys import Key, add_key, revoke_key
from deployer.gateway.openapi import document
from deployer.gateway.tracing import Tracer
from deployer.progress import SILENT

CLOSED = ("/", "/tokenize", "/detokenize", "/slots", "/props", "/completion", "/invocations",
          "/v1/models/chat", "/v1//models", "/v1/%6dodels", "/V1/MODELS", "/health/", "/../health",
          "/v1/chat/completions/", "/lora-adapters", "/v1/load_lora_adapter", "/docs")  # fmt: skip
CHAT = b'{"model":"chat","messages":[{"role":"user","content":"Hi"}]}'
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)


def with_gate(
    folder: Path, work: Callable[[Gate, FakeEngine], Awaitable[None]], **gateway: Any
) -> None:
    """Run a test's work with a gateway in front of one good engine."""

    async def scenario() -> None:
        async with FakeEngine() as engine, gate(folder, table({"a": engine.url}, gateway)) as it:
            await work(it, engine)

    asyncio.run(scenario())


async def ask(it: Gate, method: str, path: str, **more: Any) -> tuple[int, Any, Any]:
    async with it.client.request(method, path, **more) as answer:
        text = await answer.text()
        return answer.status, answer.headers, text


async def raw(it: Gate, data: bytes) -> list[tuple[int, str]]:
    """(status, body) of the answers to bytes, sent as they are, until the connection ends."""
    host, port = it.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    async with asyncio.timeout(2):
        got = (await reader.read()).decode()
    writer.close()
    answers = re.split(r"(?=HTTP/1\.[01] \d{3} )", got)[1:]
    return [(int(each[9:12]), each.partition("\r\n\r\n")[2]) for each in answers]


def test_all_but_the_listed_paths_is_not_there(tmp_path: Path) -> None:
    async def work(it: Gate, engine: FakeEngine) -> None:
        for path in CLOSED:
            line = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            ((status, body),) = await raw(it, line.encode())
            assert (path, status) == (path, 404)
            assert json.loads(body)["error"]["code"] == "not_found"
        assert engine.heads == []
        assert it.metric("deployer_refused_total", reason="path") == len(CLOSED)

    with_gate(tmp_path, work)


def test_each_path_has_one_method(tmp_path: Path) -> None:
    async def work(it: Gate, engine: FakeEngine) -> None:
        for path, right in METHODS.items():
            for method in {"GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"} - {right}:
                status, headers, text = await ask(it, method, path)
                assert (status, headers["Allow"]) == (405, right)
                assert json.loads(text)["error"]["code"] == "method_not_allowed"

    with_gate(tmp_path, work)


def test_keys_are_needed_and_models_are_per_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    secret = add_key(keys, Key(id="ops"), SILENT)
    other = add_key(keys, Key(id="other", models=("something",)), SILENT)

    async def work(it: Gate, engine: FakeEngine) -> None:
        for given in (None, "Bearer x", f"Basic {secret}", secret, "Bearer"):
            headers = {} if given is None else {"Authorization": given}
            for path in ("/v1/models", "/openapi.json"):
                status, told, _ = await ask(it, "GET", path, headers=headers)
                assert (status, told["WWW-Authenticate"]) == (401, "Bearer")
            assert (await it.chat(headers=headers))[0] == 401
        assert engine.heads == []
        good = {"Authorization": f"Bearer {secret}"}
        assert (await it.chat(headers=good))[0] == 200
        models = json.loads((await ask(it, "GET", "/v1/models", headers=good))[2])
        assert [model["id"] for model in models["data"]] == ["chat"]
        theirs = {"Authorization": f"Bearer {other}"}
        status, _, body = await it.chat(headers=theirs)
        assert (status, body["error"]["code"]) == (403, "model_not_allowed")
        assert json.loads((await ask(it, "GET", "/v1/models", headers=theirs))[2])["data"] == []
        revoke_key(keys, "ops", SILENT)
        assert (await it.chat(headers=good))[0] == 401

    with_gate(tmp_path, work, keys=str(keys))


def test_health_needs_no_key_and_metrics_none_on_this_machine(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json", Key(id="ops"), SILENT)

    async def work(it: Gate, engine: FakeEngine) -> None:
        assert (await ask(it, "GET", "/health"))[0] == 200
        status, headers, text = await ask(it, "GET", "/metrics")
        assert (status, "deployer_server_fit" in text) == (200, True)
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
        for name in ("X-Forwarded-For", "Forwarded"):
            assert (await ask(it, "GET", "/metrics", headers={name: "10.0.0.9"}))[0] == 401

    with_gate(tmp_path, work, keys=str(tmp_path / "keys.json"))


def test_without_keys_only_names_of_this_machine_are_answered(tmp_path: Path) -> None:
    async def work(it: Gate, engine: FakeEngine) -> None:
        for host in ("rebound.example:8000", "127.0.0.1.example", "evil.example"):
            for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/nothing")):
                status, _, text = await ask(it, method, path, headers={"Host": host})
                assert (status, json.loads(text)["error"]["code"]) == (421, "unknown_host")
                assert host not in text
            assert (await it.chat(headers={"Host": host}))[0] == 421
            assert (await ask(it, "GET", "/health", headers={"Host": host}))[0] == 200
        assert it.metric("deployer_refused_total", reason="host") == 12
        assert engine.heads == []
        for host in (
            "localhost:8000",
            "[::1]:8000",
            "10.0.0.7",
            "chat.internal",
            "CHAT.internal:1",
        ):
            assert (await it.chat(headers={"Host": host}))[0] == 200
        both = HEAD + b"Host: evil.example\r\nContent-Length: %d\r\n\r\n" % len(CHAT) + CHAT
        assert (await raw(it, both))[0][0] in (400, 421)

    with_gate(tmp_path, work, hosts=("chat.internal",))


def test_with_keys_the_name_matters_for_metrics_without_one_alone(tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys.json", Key(id="ops"), SILENT)

    async def work(it: Gate, engine: FakeEngine) -> None:
        elsewhere = {"Host": "chat.example"}
        keyed = {**elsewhere, "Authorization": f"Bearer {secret}"}
        assert (await it.chat(headers=keyed))[0] == 200
        assert (await ask(it, "GET", "/metrics", headers=elsewhere))[0] == 401
        assert (await ask(it, "GET", "/metrics", headers=keyed))[0] == 200
        assert (await ask(it, "GET", "/metrics"))[0] == 200

    with_gate(tmp_path, work, keys=str(tmp_path / "keys.json"))


def test_limits_of_a_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    headers = {
        "Authorization": "Bearer " + add_key(keys, Key(id="k", requests_per_minute=1), SILENT)
    }

    async def work(it: Gate, engine: FakeEngine) -> None:
        assert (await it.chat(headers=headers))[0] == 200
        status, told, body = await it.chat(headers=headers)
        assert (status, body["error"]["type"]) == (429, "rate_limit_error")
        assert 1 <= int(told["Retry-After"]) <= 60
        assert it.metric("deployer_key_tokens_total", key="k") == 8

    with_gate(tmp_path, work, keys=str(keys))


BAD_BODIES: tuple[tuple[int, dict[str, str], bytes], ...] = (
    (413, {}, b'{"model":"' + b"x" * 2048),
    (415, {"Content-Type": "text/plain"}, CHAT),
    (415, {"Content-Type": "application/x-www-form-urlencoded"}, CHAT),
    (415, {"Content-Encoding": "gzip"}, CHAT),
    (400, {}, b"{"),
    (404, {}, b'{"model":"x","messages":[{"role":"user"}]}'),
)


def test_bodies_that_are_refused(tmp_path: Path) -> None:
    async def work(it: Gate, engine: FakeEngine) -> None:
        async def pieces(body: bytes) -> Any:
            yield body

        for status, headers, body in BAD_BODIES:
            more = {"headers": {"Content-Type": "application/json", **headers}}
            for data in (body, pieces(body)):  # with a length, and in chunks of an unknown one
                got, _, text = await ask(it, "POST", "/v1/chat/completions", data=data, **more)
                assert (got, headers) == (status, headers)
                assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
        assert engine.heads == []

    with_gate(tmp_path, work, max_request_kib=1)


BAD_FRAMES = {
    "length and chunks": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "the same length twice": HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\n",
    "a signed length": HEAD + b"Content-Length: +5\r\n\r\nhello",
    "a length in hex": HEAD + b"Content-Length: 0x5\r\n\r\nhello",
    "an odd coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked before another": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a bad chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "a space before the colon": HEAD + b"Content-Length : 5\r\n\r\nhello",
    "a folded header": HEAD + b"X: a\r\n b\r\n\r\n",
    "a header without a colon": HEAD + b"nonsense\r\n\r\n",
    "a NUL": HEAD + b"X: a\x00b\r\n\r\n",
    "a bare LF": b"GET /health HTTP/1.1\nHost: localhost\n\n",
    "no version": b"GET /health\r\n\r\n",
    "a long header": HEAD + b"X: " + b"x" * 20_000 + b"\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


def test_what_may_be_read_in_two_ways_is_read_in_none(tmp_path: Path) -> None:
    """No second request may hide in what comes behind, and nothing is told of what was sent."""

    async def work(it: Gate, engine: FakeEngine) -> None:
        behind = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for name, frame in BAD_FRAMES.items():
            answers = await raw(it, frame + behind)
            assert (name, [status for status, _ in answers]) == (name, [400])
            error = json.loads(answers[0][1])["error"]
            assert set(error) == {"message", "type", "param", "code"}
        assert engine.heads == []

    with_gate(tmp_path, work)


@pytest.mark.parametrize("version", ["", " HTTP/0.9", " HTTP/2.0", " HTTP/1.2", " HTTP/", " x"])
@pytest.mark.parametrize("asked", ["GET /v1/models", "POST /v1/chat/completions"])
def test_only_http_1_is_spoken(tmp_path: Path, asked: str, version: str) -> None:
    async def work(it: Gate, engine: FakeEngine) -> None:
        head = HEAD.partition(b"\r\n")[2] + b"Content-Length: %d\r\n" % len(CHAT)
        head += b"Connection: keep-alive\r\n\r\n"
        ((status, body),) = await raw(it, f"{asked}{version}\r\n".encode() + head + CHAT)
        assert status == 400
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
        assert engine.heads == []
        assert it.metric("deployer_refused_total", reason="request") == 1
        for spoken in (" HTTP/1.0", " HTTP/1.1"):
            line = f"GET /v1/models{spoken}\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            assert (await raw(it, line.encode()))[0][0] == 200

    with_gate(tmp_path, work)


def test_too_many_connections_are_closed_and_the_others_served(tmp_path: Path) -> None:
    async def work(it: Gate, engine: FakeEngine) -> None:
        it.listener.most = 1
        assert (await it.chat())[0] == 200  # on the one connection, which is kept
        assert await raw(it, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") == []
        assert (await it.chat())[0] == 200

    with_gate(tmp_path, work)


def test_who_asks_first_is_told_to_go_on_or_not(tmp_path: Path) -> None:
    async def work(it: Gate, engine: FakeEngine) -> None:
        wait = HEAD + b"Expect: 100-continue\r\nConnection: close\r\n"
        good = wait + b"Content-Length: %d\r\n\r\n" % len(CHAT) + CHAT
        assert [status for status, _ in await raw(it, good)] == [100, 200]

    with_gate(tmp_path, work)


def test_health_tells_how_it_is(tmp_path: Path) -> None:
    async def work(it: Gate, engine: FakeEngine) -> None:
        good = upstream("a", engine.url)
        bad = good.model_copy(update={"state": "failed"})
        seen = []
        for each in (good, bad):
            it.write(table({"a": each}))
            status, _, text = await ask(it, "GET", "/health")
            seen.append((status, json.loads(text)["status"]))
        status, headers, _ = await it.chat()
        assert (status, "Retry-After" in headers) == (503, True)
        it.app.draining = True
        status, _, text = await ask(it, "GET", "/health")
        seen.append((status, json.loads(text)["status"]))
        assert seen == [(200, "ok"), (503, "unhealthy"), (503, "draining")]

    with_gate(tmp_path, work)


def test_a_bad_table_changes_nothing(tmp_path: Path) -> None:
    async def work(it: Gate, engine: FakeEngine) -> None:
        it.path.write_text("{}")
        assert not it.app.tables.check()
        assert (await it.chat())[0] == 200
        it.path.unlink()
        assert not it.app.tables.check()
        assert (await it.chat())[0] == 200
        told = table({"a": upstream("a", engine.url)})
        it.write(told.model_copy(update={"generation": 2}))
        assert json.loads((await ask(it, "GET", "/health"))[2])["generation"] == 2

    with_gate(tmp_path, work)


def test_another_collector_for_traces_is_taken_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noted(Tracer):
        closed = False

        def close(self) -> None:
            self.closed = True

    made: list[Noted] = []

    def of(url: str | None) -> Tracer:
        if url == "http://no.packages":
            raise UsageError("OpenTelemetry is not installed")
        made.append(Noted())
        return made[-1]

    monkeypatch.setattr(Tracer, "of", staticmethod(of))

    async def work(it: Gate, engine: FakeEngine) -> None:
        for url in ("http://a", "http://no.packages", None):
            it.write(table({"a": engine.url}, {"traces": url}))
            await asyncio.sleep(0.01)
        assert it.app.tracer is made[-1]
        assert [each.closed for each in made] == [True, True, False]
        refused = [fields for name, fields in it.events if name == "traces_refused"]
        assert refused == [{"reason": "OpenTelemetry is not installed"}]

    with_gate(tmp_path, work)


def test_a_draining_gateway_closes_its_connections(tmp_path: Path) -> None:
    async def work(it: Gate, engine: FakeEngine) -> None:
        it.app.replies.closing = True
        for stream in (False, True):
            status, headers, _ = await it.chat(stream=stream)
            assert (status, headers["Connection"]) == (200, "close")

    with_gate(tmp_path, work)


def test_a_fault_of_ours_is_told_without_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(it: Gate, engine: FakeEngine) -> None:
        async def broken(*_: object) -> None:
            raise RuntimeError("a secret")

        monkeypatch.setattr(it.app.proxy, "serve", broken)
        status, _, body = await it.chat()
        assert (status, body["error"]["code"]) == (500, "internal")
        assert "a secret" not in json.dumps(body)
        assert "a fault of the gateway" in caplog.text

    with_gate(tmp_path, work)


def test_the_document_knows_every_path_and_method(tmp_path: Path) -> None:
    async def work(it: Gate, engine: FakeEngine) -> None:
        told = json.loads((await ask(it, "GET", "/openapi.json"))[2])
        assert told == json.loads(json.dumps(document(512)))
        paths = {path: next(iter(methods)).upper() for path, methods in told["paths"].items()}
        assert paths == METHODS

    with_gate(tmp_path, work)
