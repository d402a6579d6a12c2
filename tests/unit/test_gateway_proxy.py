"""A request on its way to an engine and back, with made-up engines that fail as they are told."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from gateway_in_process import FakeEngine, Gate, gate, table, upstream

TOO_LONG = {
    "llama.cpp": {"error": {"code": 400, "type": "exceed_context_size_error",
                            "message": "the request exceeds the available context size"}},
    "vllm": {"error": {"message": "This model's maximum context length is 512 tokens.",
                       "type": "BadRequestError", "param": None, "code": 400}},
    "transformers": {"detail": "the prompt has 600 tokens, and the context is 512"},
}  # fmt: skip


def events_of(text: str) -> list[Any]:
    """The JSON of a stream's events; the end mark as text."""
    data = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def text_of(events: list[Any]) -> str:
    chunks = [e for e in events if isinstance(e, dict) and e.get("choices")]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)


def error_of(events: list[Any]) -> dict[str, Any]:
    """The error that a stream ends with, of which no end mark may follow."""
    assert "[DONE]" not in events
    return events[-1]["error"]  # type: ignore[no-any-return]


def test_a_whole_answer_comes_back_as_it_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeEngine() as engine, gate(tmp_path, table({"a": engine.url})) as gateway:
            secret = {"Authorization": "Bearer x", "Cookie": "c=1", "X-Own": "1",
                      "traceparent": "00-1", "X-Request-Id": "mine-1"}  # fmt: skip
            status, headers, body = await gateway.chat(headers=secret)
            assert (status, body["choices"][0]["message"]["content"]) == (200, "one two three")
            assert (headers["X-Deployer-Server"], headers["X-Request-Id"]) == ("a", "mine-1")
            assert engine.bodies[0]["model"] == "model-of-a"
            sent = engine.heads[0].lower()
            assert "traceparent: 00-1" in sent
            assert "x-request-id: mine-1" in sent
            assert not any(word in sent for word in ("authorization", "cookie", "x-own"))
            labels = {"route": "chat", "server": "a"}
            assert gateway.metric("deployer_requests_total", kind="ok", **labels) == 1
            assert gateway.metric("deployer_tokens_total", direction="output", **labels) == 3

    asyncio.run(scenario())


@pytest.mark.parametrize("asked", [None, False, True])
def test_the_usage_of_a_stream_is_for_those_who_asked(tmp_path: Path, asked: bool | None) -> None:
    async def scenario() -> None:
        async with FakeEngine() as engine, gate(tmp_path, table({"a": engine.url})) as gateway:
            options = {} if asked is None else {"stream_options": {"include_usage": asked}}
            status, headers, text = await gateway.chat(stream=True, **options)
            events = events_of(text)
            assert (status, headers["Content-Type"]) == (200, "text/event-stream")
            assert (text_of(events), events[-1]) == ("one two three", "[DONE]")
            assert any("usage" in event for event in events if event != "[DONE]") is bool(asked)
            labels = {"route": "chat", "server": "a"}
            assert gateway.metric("deployer_tokens_total", direction="prompt", **labels) == 5
            assert gateway.metric("deployer_ttft_seconds_count", **labels) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [("cut", "the server"), ("short", "without the end mark"), ("error", "out of luck"),
     ("stall", "sent nothing for")],
)  # fmt: skip
def test_half_a_stream_ends_with_an_error_and_no_end_mark(
    tmp_path: Path, behaviour: str, words: str
) -> None:
    async def scenario() -> None:
        quick = {"request_timeout": 0.05} if behaviour == "stall" else None
        async with FakeEngine(behaviour) as engine, FakeEngine() as other:
            told = table({"a": engine.url, "b": other.url}, quick, to={"a": 1.0, "b": 0.0})
            async with gate(tmp_path, told) as gateway:
                status, _, text = await gateway.chat(stream=True)
                events = events_of(text)
                assert (status, text_of(events)) == (200, "one two")
                assert words in error_of(events)["message"]
                assert other.bodies == []
                await gateway.settle()

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("behaviour", ["drop", "500", "503", "429", "hang", "text"])
def test_before_the_first_byte_the_next_server_is_asked(
    tmp_path: Path, behaviour: str, stream: bool
) -> None:
    async def scenario() -> None:
        quick = {"request_timeout": 0.05} if behaviour == "hang" else None
        async with FakeEngine(behaviour) as bad, FakeEngine() as good:
            told = table({"a": bad.url, "b": good.url}, quick, to={"a": 1.0}, fallback="b")
            async with gate(tmp_path, told) as gateway:
                status, headers, body = await gateway.chat(stream=stream)
                assert (status, headers["X-Deployer-Server"]) == (200, "b")
                assert not stream or body.endswith("data: [DONE]\n\n")
                assert (len(bad.bodies), len(good.bodies)) == (1, 1)
                ok = {"route": "chat", "server": "b", "kind": "ok"}
                assert gateway.metric("deployer_requests_total", **ok) == 1

    asyncio.run(scenario())


def test_a_failure_nobody_mends_is_told(tmp_path: Path) -> None:
    failures = {"drop": 502, "500": 502, "302": 502, "401": 502, "429": 429, "text": 502,
                "hang": 504}  # fmt: skip

    async def scenario() -> None:
        async with FakeEngine(*failures) as engine:
            told = table({"a": engine.url})
            async with gate(tmp_path, told) as gateway:
                for behaviour, status in failures.items():
                    quick = {"request_timeout": 0.05} if behaviour == "hang" else None
                    fresh = told.upstreams[0].model_copy(update={"instance": f"d.{behaviour}"})
                    gateway.write(table({"a": fresh}, quick))
                    got, headers, body = await gateway.chat()
                    assert (behaviour, got) == (behaviour, status)
                    assert set(body["error"]) == {"message", "type", "param", "code"}
                    assert ("Retry-After" in headers) == (status == 429)
                assert len(engine.bodies) == len(failures)
                await gateway.settle()

    asyncio.run(scenario())


def test_an_error_as_the_first_event_is_no_stream_yet(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            FakeEngine("error-first") as engine,
            gate(tmp_path, table({"a": engine.url})) as gateway,
        ):
            status, _, body = await gateway.chat(stream=True)
            assert (status, "out of luck" in body["error"]["message"]) == (502, True)

    asyncio.run(scenario())


def test_a_request_that_ends_engines_is_not_carried_on(tmp_path: Path) -> None:
    """It may be what kills them: two are enough."""

    async def scenario() -> None:
        async with FakeEngine("drop") as a, FakeEngine("drop") as b, FakeEngine("drop") as c:
            engines = {"a": a.url, "b": b.url, "c": c.url}
            async with gate(tmp_path, table(engines)) as gateway:
                assert (await gateway.chat())[0] == 502
                assert sum(len(each.bodies) for each in (a, b, c)) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("engine_name", TOO_LONG)
def test_a_prompt_beyond_the_context_is_refused_alike(tmp_path: Path, engine_name: str) -> None:
    async def scenario() -> None:
        answer = ("400", TOO_LONG[engine_name])
        async with FakeEngine(answer) as engine, gate(tmp_path, table({"a": engine.url})) as it:
            status, headers, body = await it.chat(stream=True)
            error = body["error"]
            assert (status, error["code"]) == (400, "context_length_exceeded")
            assert (error["type"], "context" in error["message"]) == ("invalid_request_error", True)
            assert headers["Content-Type"] == "application/json"
            kind = {"route": "chat", "server": "a", "kind": "client_error"}
            assert it.metric("deployer_requests_total", **kind) == 1

    asyncio.run(scenario())


def test_what_the_engine_does_not_offer_is_not_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeEngine("501") as engine, gate(tmp_path, table({"a": engine.url})) as it:
            body = {"model": "chat", "input": "x"}
            async with it.client.post("/v1/embeddings", json=body) as answer:
                assert answer.status == 404

    asyncio.run(scenario())


def test_more_tokens_than_any_context_are_refused_and_the_larger_server_is_taken(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with FakeEngine() as small, FakeEngine() as large:
            servers = {"a": small.url, "b": upstream("b", large.url, context=1024)}
            async with gate(tmp_path, table(servers, to={"a": 1.0, "b": 1e-6})) as gateway:
                assert (await gateway.chat(max_tokens=1024))[0] == 200
                assert (len(small.bodies), len(large.bodies)) == (0, 1)
                status, _, body = await gateway.chat(max_tokens=1025)
                assert (status, body["error"]["param"]) == (400, "max_tokens")

    asyncio.run(scenario())


def test_a_client_that_leaves_ends_the_work(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            FakeEngine("slow", "hang") as engine,
            gate(tmp_path, table({"a": engine.url})) as it,
        ):
            for number, stream in enumerate((True, False), 1):
                asking = asyncio.create_task(it.chat(stream=stream))
                await until(lambda number=number: len(engine.bodies) == number)
                await asyncio.sleep(0.01)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                await it.settle()
            await until(lambda: engine.left == 2)
            kind = {"route": "chat", "server": "a", "kind": "cancelled"}
            assert it.metric("deployer_requests_total", **kind) == 2

    asyncio.run(scenario())


async def until(holds: Any, seconds: float = 2.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.002)


def test_an_unreachable_server_is_waited_for(tmp_path: Path) -> None:
    """Nothing was sent, so nothing is lost: the request is served when the server is back."""

    async def scenario() -> None:
        async with FakeEngine() as engine:
            gone = upstream("a", "http://127.0.0.1:9")
            async with gate(tmp_path, table({"a": gone})) as gateway:
                asking = asyncio.create_task(gateway.chat())
                await until(lambda: gateway.app.admission.waiting("chat") == 1)
                gateway.write(table({"a": upstream("a", engine.url, instance="d.a.2")}))
                status, headers, _ = await asking
                assert (status, headers["X-Deployer-Server"]) == (200, "a")

    asyncio.run(scenario())


def test_who_waits_goes_to_the_fallback_when_the_server_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeEngine("slow") as a, FakeEngine() as b:
            first = upstream("a", a.url, slots=1)
            servers = {"a": first, "b": upstream("b", b.url)}
            route = {"to": {"a": 1.0}, "fallback": "b"}
            async with gate(tmp_path, table(servers, **route)) as gateway:
                stream = asyncio.create_task(gateway.chat(stream=True))
                await until(lambda: a.bodies)
                waiting = asyncio.create_task(gateway.chat())
                await until(lambda: gateway.app.admission.waiting("chat") == 1)
                dead = first.model_copy(update={"state": "restarting"})
                gateway.write(table({**servers, "a": dead}, **route))
                status, headers, _ = await waiting
                assert (status, headers["X-Deployer-Server"]) == (200, "b")
                stream.cancel()
                await asyncio.gather(stream, return_exceptions=True)

    asyncio.run(scenario())


def test_too_many_are_sent_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeEngine("slow") as engine:
            one = upstream("a", engine.url, slots=1)
            async with gate(tmp_path, table({"a": one}, {"max_waiting": 0})) as gateway:
                stream = asyncio.create_task(gateway.chat(stream=True))
                await until(lambda: engine.bodies)
                status, headers, body = await gateway.chat()
                assert (status, body["error"]["code"]) == (429, "server_busy")
                assert int(headers["Retry-After"]) >= 1
                assert gateway.metric("deployer_refused_total", reason="busy") == 1
                stream.cancel()
                await asyncio.gather(stream, return_exceptions=True)

    asyncio.run(scenario())


def test_copies_go_to_the_shadow_and_change_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeEngine() as engine, FakeEngine("500", "cut") as tried:
            servers = {"a": engine.url, "s": tried.url}
            route = {"to": {"a": 1.0}, "shadow": {"server": "s", "share": 1.0}}
            async with gate(tmp_path, table(servers, **route)) as gateway:
                for _ in range(3):
                    assert (await gateway.chat(stream=True))[0] == 200
                    await gateway.settle()
                assert (len(engine.bodies), len(tried.bodies)) == (3, 3)
                labels = {"route": "chat", "server": "s"}
                for kind in ("ok", "upstream_error", "truncated"):
                    assert gateway.metric("deployer_shadow_total", kind=kind, **labels) == 1
                assert gateway.metric("deployer_requests_total", kind="ok", **labels) is None

    asyncio.run(scenario())


def test_a_shadow_without_room_gets_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeEngine() as engine, FakeEngine("hang") as tried:
            servers = {"a": engine.url, "s": upstream("s", tried.url, slots=1)}
            route = {"to": {"a": 1.0}, "shadow": {"server": "s", "share": 1.0}}
            async with gate(tmp_path, table(servers, **route)) as gateway:
                for _ in range(2):
                    assert (await gateway.chat())[0] == 200
                labels = {"route": "chat", "server": "s", "kind": "dropped"}
                assert gateway.metric("deployer_shadow_total", **labels) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("sticky", ["session", "key", "none"])
def test_a_session_keeps_its_server(tmp_path: Path, sticky: str) -> None:
    async def scenario() -> None:
        async with FakeEngine() as a, FakeEngine() as b:
            told = table({"a": a.url, "b": b.url}, sticky=sticky)
            async with gate(tmp_path, told) as gateway:
                seen = set()
                for _ in range(12):
                    headers = {"X-Session-Id": "s7"}
                    seen.add((await gateway.chat(headers=headers))[1]["X-Deployer-Server"])
                assert (len(seen) == 1) == (sticky != "none")

    asyncio.run(scenario())


def test_what_still_runs_at_the_end_is_told_so(tmp_path: Path) -> None:
    async def cut(gateway: Gate) -> None:
        gateway.app.proxy.cutting = True
        for task in list(gateway.app.running):
            task.cancel()

    async def scenario() -> None:
        async with FakeEngine("slow") as engine:
            one = upstream("a", engine.url, slots=1)
            async with gate(tmp_path, table({"a": one})) as gateway:
                stream = asyncio.create_task(gateway.chat(stream=True))
                await until(lambda: engine.bodies)
                waiting = asyncio.create_task(gateway.chat())
                await until(lambda: gateway.app.admission.waiting("chat") == 1)
                await asyncio.sleep(0.01)
                await cut(gateway)
                assert error_of(events_of((await stream)[2]))["code"] == "draining"
                status, headers, body = await waiting
                assert (status, body["error"]["code"]) == (503, "draining")
                assert "Retry-After" in headers

    asyncio.run(scenario())
