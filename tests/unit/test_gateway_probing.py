"""Probes: what is asked, what counts as an answer, and what only means that a server is busy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from gateway_samples import Clock, Heard, route, table, upstream

from deployer.gateway import probing
from deployer.gateway.judging import Judges, Probe
from deployer.gateway.outcome import Outcome
from deployer.gateway.probing import LARGEST, Prober, run_probes, text_of
from deployer.gateway.routing import Upstream
from deployer.gateway.standing import Probed
from deployer.gateway.upstreams import make_session

QUALITY = {
    "questions": ({"ask": "2 + 2?", "expect": r"\b4\b"}, {"ask": "Capital?", "expect": "paris"}),
    "max_tokens": 9,
}
ROUTE = route({"a": 1.0})
ASKING = route({"a": 1.0}, quality=QUALITY)
Answer = Callable[[dict[str, Any]], web.Response]


def says(text: str | None, tokens: int = 1) -> web.Response:
    choices = [{"index": 0, "message": {"role": "assistant", "content": text}}]
    return web.json_response({"choices": choices, "usage": {"completion_tokens": tokens}})


class Engine:
    """Answers as the test says, and keeps what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[dict[str, Any]] = []
        self._answer = answer

    async def serve(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body)
        return self._answer(body)


@asynccontextmanager
async def free(server: str) -> AsyncIterator[bool]:
    """A slot of a server that has enough of them."""
    yield True


def with_engine(
    engine: Engine, act: Callable[[Prober, Upstream, list[Outcome]], Awaitable[Any]]
) -> Any:
    """Run `act` with a prober and an engine that listens."""

    async def run() -> Any:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", engine.serve)
        outcomes: list[Outcome] = []
        async with TestServer(app) as server, make_session() as session:
            there = upstream("a", url=str(server.make_url("")).rstrip("/"))
            return await act(Prober(session, free, outcomes.append), there, outcomes)

    return asyncio.run(run())


def probed(answer: Answer, asking: bool = False) -> tuple[Probed | None, Engine, list[Outcome]]:
    engine = Engine(answer)

    async def act(prober: Prober, there: Upstream, outcomes: list[Outcome]) -> Any:
        probe = Probe(ASKING if asking else ROUTE, "a", "a.1")
        return await prober.probe(probe, there), engine, outcomes

    result: tuple[Probed | None, Engine, list[Outcome]] = with_engine(engine, act)
    return result


def test_a_probe_asks_for_one_token() -> None:
    found, engine, outcomes = probed(lambda body: says(""))
    assert found is not None and found.ttft is not None and 0 < found.ttft < 5
    assert found.asked == found.right == 0 and found.share == 1.0
    (asked,) = engine.asked
    assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("model-a", 1, 0)
    (outcome,) = outcomes
    assert outcome.probe and outcome.kind == "ok" and outcome.ttft == found.ttft


def test_a_round_asks_all_questions() -> None:
    answers = {"2 + 2?": "It is 14.", "Capital?": "PARIS, of course"}

    def answer(body: dict[str, Any]) -> web.Response:
        return says(answers.get(body["messages"][0]["content"], "Hi"))

    found, engine, _ = probed(answer, asking=True)
    assert found is not None and (found.asked, found.right, found.share) == (2, 1, 0.5)
    assert [body["max_tokens"] for body in engine.asked] == [1, 9, 9]


@pytest.mark.parametrize(
    "answer",
    [
        lambda body: web.Response(status=500),
        lambda body: web.Response(status=302, headers={"location": "/"}),
        lambda body: web.Response(text="<html>"),
        lambda body: web.Response(text="[" * 10_000),
        lambda body: web.json_response([]),
        lambda body: web.json_response({"choices": []}),
        lambda body: says("word", tokens=0),
        lambda body: web.Response(body=b" " * (LARGEST + 1)),
    ],
    ids=["500", "redirect", "page", "deep", "list", "no usage", "no token", "large"],
)
def test_what_is_no_answer(answer: Answer) -> None:
    found, _, outcomes = probed(answer)
    assert found == Probed()
    assert [outcome.kind for outcome in outcomes] == ["upstream_error"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_calls_itself_busy_is_not_judged(status: int) -> None:
    found, _, outcomes = probed(lambda body: web.Response(status=status))
    assert found is None and outcomes == []


def test_a_round_that_breaks_off_says_nothing_of_the_answers() -> None:
    def answer(body: dict[str, Any]) -> web.Response:
        return says("Hi") if body["max_tokens"] == 1 else web.Response(status=500)

    found, _, _ = probed(answer, asking=True)
    assert found == Probed()


def test_nobody_listens() -> None:
    async def act(prober: Prober, there: Upstream, outcomes: list[Outcome]) -> Probed | None:
        gone = upstream("a", url="http://127.0.0.1:1")
        return await prober.probe(Probe(ROUTE, "a", "a.1"), gone)

    assert with_engine(Engine(lambda body: says("")), act) == Probed()


@pytest.mark.parametrize("free_slots", [0, 1])
def test_a_server_without_a_free_slot_is_not_judged(free_slots: int) -> None:
    engine = Engine(lambda body: says(""))
    left = [True] * free_slots

    @asynccontextmanager
    async def hold(server: str) -> AsyncIterator[bool]:
        assert server == "a"
        yield bool(left) and left.pop()

    async def act(prober: Prober, there: Upstream, outcomes: list[Outcome]) -> None:
        busy = Prober(prober.session, hold, outcomes.append)
        assert await busy.probe(Probe(ASKING, "a", "a.1"), there) is None
        assert len(engine.asked) == free_slots and outcomes == []

    with_engine(engine, act)


def test_the_text_of_an_answer() -> None:
    assert text_of(json.loads(says("word").body)) == "word"  # type: ignore[arg-type]
    for nothing in ({}, {"choices": 1}, {"choices": [{"message": {"content": None}}]}):
        assert text_of(nothing) == ""


def test_what_is_due_is_probed_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "TICK", 0.005)
    clock, heard = Clock(), Heard()
    judges = Judges(clock, heard)
    engine = Engine(lambda body: says("4", tokens=1))

    async def act(prober: Prober, there: Upstream, outcomes: list[Outcome]) -> None:
        whole = table(ASKING, upstreams=(there,))
        judges.apply(whole)
        running = asyncio.create_task(
            run_probes(judges, lambda: whole, prober.session, prober.hold, outcomes.append)
        )
        while "server_unfit" not in heard.names:
            await asyncio.sleep(0.005)
        assert len(engine.asked) == 3 and len(outcomes) == 1
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    with_engine(engine, act)
    assert heard.last("server_unfit")["detail"] == "1 of 2 questions answered rightly"
    clock.pass_(100)
    assert len(judges.due()) == 1  # none was left open
