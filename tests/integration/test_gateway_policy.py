"""The gateway's policy in its own process: keys, limits, weights, and fallbacks that come and go.

The engines are made up, because they must fall ill when a test says so; the last test asks a
real one.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_process import Running, running_gateway, table, upstream

from deployer import serving
from deployer.artifacts import Bundle
from deployer.gateway.keys import add_key, new_key, revoke_key
from deployer.home import Home
from deployer.progress import SILENT
from deployer.recipe import Serve

pytestmark = pytest.mark.integration

POISON = "a request that this engine cannot bear"
PATIENCE = 20.0
"""Seconds until something must have happened."""


class MadeUpEngine:
    """An engine without a model: `text` is what it answers, after `delay` seconds.

    It answers `status`, and 500 to whoever says POISON.
    """

    def __init__(self) -> None:
        self.text = "Paris"
        self.delay = 0.0
        self.status = 200

    def events(self) -> Iterator[dict[str, Any]]:
        for word in (self.text, "."):
            yield {"choices": [{"index": 0, "delta": {"content": word}}]}
        yield {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}

    def answer(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.text}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return {"choices": [{"index": 0, "message": message}], "usage": usage}


@contextmanager
def made_up_engine() -> Iterator[tuple[MadeUpEngine, str]]:
    """Serve one on a free loopback port; gives it and its URL."""
    engine = MadeUpEngine()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send("text/plain", b"", 200)

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"])).decode()
            body, status = json.loads(raw), 500 if POISON in raw else engine.status
            time.sleep(engine.delay)
            if body.get("stream"):
                lines = [f"data: {json.dumps(event)}\n\n" for event in engine.events()]
                self.send(
                    "text/event-stream", "".join([*lines, "data: [DONE]\n\n"]).encode(), status
                )
            else:
                self.send("application/json", json.dumps(engine.answer()).encode(), status)

        def send(self, kind: str, data: bytes, status: int) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield engine, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


Engines = dict[str, MadeUpEngine]


@contextmanager
def deployed(
    folder: Path, route: dict[str, Any], names: str = "ab", **settings: object
) -> Iterator[tuple[Running, Engines]]:
    """A gateway with the route `chat` in front of made-up engines."""
    with ExitStack() as stack:
        engines, behind = {}, []
        for name in names:
            engines[name], url = stack.enter_context(made_up_engine())
            behind.append(upstream(name, url, slots=16))
        told = {**table(behind, **settings), "routes": [{"model": "chat", **route}]}
        yield stack.enter_context(running_gateway(folder, told)), engines


def client() -> httpx.Client:
    """One that loads no certificates: that takes longer than all else here."""
    return httpx.Client(trust_env=False, verify=False, timeout=PATIENCE)


def ask(running: Running, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    session = fields.pop("session", None)
    if session:
        headers["x-session-id"] = session
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}], **fields}
    url = f"{running.url}/v1/chat/completions"
    with client() as own:
        return own.post(url, json=body, headers=headers)


def server_of(running: Running, **fields: Any) -> str:
    answer = ask(running, **fields)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-deployer-server"]


def until(happened: Callable[[], bool], what: str) -> float:
    """Wait for it; gives the seconds it took."""
    begun = time.monotonic()
    while not happened():
        assert time.monotonic() - begun < PATIENCE, f"not in time: {what}"
        time.sleep(0.05)
    return time.monotonic() - begun


def metric(running: Running, line: str) -> float | None:
    with client() as own:
        page = own.get(f"{running.url}/metrics").text
    found = [row for row in page.splitlines() if row.startswith(f"{line} ")]
    return float(found[0].split()[-1]) if found else None


def events(running: Running) -> list[dict[str, Any]]:
    lines = (running.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def told(running: Running, event: str) -> list[dict[str, Any]]:
    return [one for one in events(running) if one["event"] == event]


QUALITY = {
    "every": 0.5,
    "questions": [{"ask": "What is the capital of France?", "expect": "paris"}],
}


def test_wrong_answers_bring_the_fallback_and_right_ones_end_it(tmp_path: Path) -> None:
    route = {"to": {"a": 1}, "fallback": "b", "quality": QUALITY, "recover_after": 1.0}
    with deployed(tmp_path, route) as (running, engines):
        assert server_of(running) == "a"
        engines["a"].text = "Rome"
        until(lambda: server_of(running) == "b", "the fallback answers")
        assert metric(running, 'deployer_fallback_active{route="chat"}') == 1
        assert metric(running, 'deployer_server_fit{route="chat",server="a"}') == 0
        assert metric(running, 'deployer_probe_correct{route="chat",server="a"}') == 0
        engines["a"].text = "It is PARIS"
        until(lambda: server_of(running) == "a", "the server is back")
        assert metric(running, 'deployer_fallback_active{route="chat"}') == 0
        name = 'deployer_fallbacks_total{reason="quality",route="chat"}'
        assert metric(running, name) == 1
        (on,), (off,) = told(running, "fallback_on"), told(running, "fallback_off")
        assert on["reason"] == "quality" and on["fallback"] == off["fallback"] == "b"
        assert "0 of 1 questions" in on["details"]["a"]
        assert "Rome" not in json.dumps(events(running))


def test_slow_streams_bring_the_fallback_until_probes_are_quick(tmp_path: Path) -> None:
    objectives = {"ttft_p95_ms": 250.0, "window": 30.0, "min_requests": 5}
    route = {"to": {"a": 1}, "fallback": "b", "objectives": objectives, "recover_after": 1.0}
    with deployed(tmp_path, route) as (running, engines):
        engines["a"].delay = 0.4
        asked = []

        def fell_back() -> bool:
            asked.append(server_of(running, stream=True))
            return asked[-1] == "b"

        until(fell_back, "the fallback answers")
        assert asked.count("a") >= 5
        assert told(running, "fallback_on")[0]["reason"] == "objectives"
        time.sleep(1.5)
        assert server_of(running) == "b"  # a probe of a slow server passes nothing
        engines["a"].delay = 0.0
        until(lambda: server_of(running) == "a", "the server is back")


def test_errors_of_one_client_do_not_take_the_server_from_the_others(tmp_path: Path) -> None:
    with deployed(tmp_path, {"to": {"a": 1}}, names="a") as (running, _):
        poison = [{"role": "user", "content": POISON}]
        assert [ask(running, messages=poison).status_code for _ in range(9)] == [502] * 9
        probes = 'deployer_probes_total{kind="ok",route="chat",server="a"}'
        until(lambda: metric(running, probes) is not None, "it is probed")
        assert ask(running).status_code == 200
        assert told(running, "server_unfit") == []


def test_a_server_that_errs_for_all_gets_no_more_and_comes_back(tmp_path: Path) -> None:
    with deployed(tmp_path, {"to": {"a": 1, "b": 1}}) as (running, engines):
        engines["a"].status = 500

        def unfit() -> bool:
            assert server_of(running) == "b"  # whoever came to a was sent on
            return bool(told(running, "server_unfit"))

        until(unfit, "the server is unfit")
        engines["a"].status = 200
        until(lambda: server_of(running) == "a", "it is back")
        (told_of,) = told(running, "server_unfit")
        assert told_of["server"] == "a" and told_of["reasons"] == ["connection"]


def test_weights_and_sessions(tmp_path: Path) -> None:
    route = {"to": {"a": 9, "b": 1}, "sticky": "session"}
    with deployed(tmp_path, route) as (running, _):
        kept = {f"s{n}": server_of(running, session=f"s{n}") for n in range(60)}
        assert {name: server_of(running, session=name) for name in kept} == kept
        assert 0 < Counter(kept.values())["b"] < 20
        without = Counter(server_of(running) for _ in range(60))
        assert 0 < without["b"] < 20


def test_keys_are_made_limited_and_revoked_while_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    ops = add_key(file, new_key("ops"), SILENT)
    with deployed(tmp_path / "gateway", {"to": {"a": 1}}, "a", keys=str(file)) as (running, _):
        assert ask(running).status_code == 401
        assert ask(running, ops[:-1]).status_code == 401
        assert ask(running, ops).status_code == 200
        slow = add_key(file, new_key("slow", requests_per_minute=2), SILENT)
        other = add_key(file, new_key("other", models=("else",)), SILENT)
        few = add_key(file, new_key("few", tokens_per_minute=6), SILENT)
        assert ask(running, other).status_code == 403
        answers = [ask(running, slow) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 25 <= int(answers[2].headers["retry-after"]) <= 30
        answers = [ask(running, few) for _ in range(3)]  # 5 tokens each
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        revoke_key(file, "ops", SILENT)
        assert ask(running, ops).status_code == 401
        file.write_text("{", encoding="utf-8")
        assert ask(running, slow).status_code == 429  # the old keys hold
        assert len(told(running, "keys_refused")) == 1
        seen = json.dumps(events(running)) + running.log
        assert [secret for secret in (ops, slow, other, few) if secret in seen] == []
        refused = [metric(running, f'deployer_refused_total{{reason="{reason}"}}')
                   for reason in ("key", "limit", "model")]  # fmt: skip
        assert refused == [3, 3, 1]
        assert metric(running, 'deployer_key_tokens_total{key="few"}') == 10


def test_a_real_engine_is_asked_and_its_answers_are_judged(
    home: Home, demo_bundle: Bundle, tmp_path: Path
) -> None:
    own = Home(tmp_path / "home")
    own.root.mkdir()
    (own.root / "toolchains").symlink_to(home.toolchains)
    settings = Serve(server="xllamacpp", port=0, context=512, parallel=2, threads=1)
    questions = {"every": 0.5, "max_tokens": 16, "questions": [
        {"ask": "What is the capital of France?", "expect": "Paris"}]}  # fmt: skip
    wrong = {**questions, "questions": [{"ask": "What is 2 + 2?", "expect": "^no such answer$"}]}
    with ExitStack() as stack:
        record = serving.start(demo_bundle, settings, own, name="policy", detach=True)
        stack.callback(serving.stop, own, "policy")
        model = demo_bundle.manifest.name
        behind = [upstream("q4", record.endpoint, model=model, slots=2)]
        routes = [
            {"model": "good", "to": {"q4": 1}, "quality": questions},
            {"model": "bad", "to": {"q4": 1}, "quality": wrong},
        ]
        told_table = {**table(behind), "routes": routes}
        running = stack.enter_context(running_gateway(tmp_path / "gateway", told_table))
        until(lambda: bool(told(running, "server_unfit")), "the wrong answer is found")
        name = 'deployer_probe_correct{route="good",server="q4"}'
        until(lambda: metric(running, name) is not None, "a round is over")
        assert metric(running, name) == 1
        unfit = {(one["route"], one["server"]) for one in told(running, "server_unfit")}
        assert ("good", "q4") not in unfit and ("bad", "q4") in unfit
        assert server_of(running, model="good", max_tokens=2) == "q4"
