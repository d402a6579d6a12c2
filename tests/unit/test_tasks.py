"""Tasks: arithmetic, checks and programs without a process, and a small endpoint of ours."""

from __future__ import annotations

import gzip
import json
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deployer import tasks
from deployer.errors import PlanError, ServerError, UsageError
from deployer.home import Home
from deployer.progress import SILENT
from deployer.tasks import humaneval, instructions, lm_eval
from deployer.tasks.instructions import Instruction, misses
from deployer.tasks.intervals import mean_interval, recovery, wilson
from deployer.tasks.results import Item, TaskResult
from deployer.tasks.target import Target


def result(scores: list[float], metric: str = "pass@1") -> TaskResult:
    items = tuple(Item(str(number), score) for number, score in enumerate(scores))
    return TaskResult.of("demo", metric, items, {}, 1.0)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634),
     (81, 164, 0.4185, 0.5697)],
)  # fmt: skip
def test_wilsons_interval(successes: int, count: int, low: float, high: float) -> None:
    assert wilson(successes, count) == pytest.approx((low, high), abs=5e-4)


def test_scores_between_zero_and_one_get_a_bootstrap_interval() -> None:
    scores = [0.5, 0.25, 0.75, 0.5] * 10
    low, high = mean_interval(scores)
    assert 0.4 < low < 0.5 < high < 0.6


def test_recovery_of_a_model_that_lost_a_fifth() -> None:
    before, after = result([1.0] * 100 + [0.0] * 100), result([1.0] * 80 + [0.0] * 120)
    kept = recovery(after, before)
    assert kept.value == pytest.approx(0.8)
    assert kept.low is not None and kept.high is not None
    assert 0.7 < kept.low < 0.8 < kept.high < 0.9
    assert (kept.better, kept.worse, kept.note) == (0, 20, "")


def test_the_interval_of_a_recovery_holds_the_truth_as_often_as_it_says() -> None:
    """50 pairs of runs whose true recovery is 0.75: about 47 intervals must hold it."""
    chance = random.Random(1)
    held = 0
    for _ in range(50):
        before = [float(chance.random() < 0.6) for _ in range(100)]
        after = [score * (chance.random() < 0.75) for score in before]
        kept = recovery(result(after), result(before))
        assert kept.low is not None and kept.high is not None
        held += kept.low <= 0.75 <= kept.high
    assert 42 <= held <= 50


def test_pairs_make_the_interval_narrower_than_two_separate_ones() -> None:
    before = result([1.0, 0.0] * 50)
    kept = recovery(result([1.0, 0.0] * 49 + [0.0, 0.0]), before)
    assert kept.low is not None and kept.high is not None
    assert kept.high - kept.low < (before.high - before.low) / before.value / 2


def test_no_difference_is_no_proof_of_equality() -> None:
    kept = recovery(result([1.0, 0.0, 1.0]), result([1.0, 0.0, 1.0]))
    assert kept.value == 1.0
    assert kept.low is not None and kept.high is not None
    assert kept.low < 0.5 and kept.high > 1.5
    assert "no item of 3 differs" in kept.note


def test_a_baseline_that_solves_nothing_says_nothing() -> None:
    kept = recovery(result([1.0, 0.0]), result([0.0, 0.0]))
    assert (kept.value, kept.low, kept.high) == (None, None, None)
    assert "solves no item" in kept.note


def test_few_items_are_told_of() -> None:
    kept = recovery(result([1.0, 0.0, 0.0]), result([1.0, 1.0, 0.0]))
    assert "only 3 items" in kept.note
    assert "no baseline success" in kept.note  # a resample of the third item alone


@pytest.mark.parametrize("other", [result([1.0]), result([1.0, 0.0], "followed")])
def test_runs_that_did_not_ask_the_same_are_not_compared(other: TaskResult) -> None:
    with pytest.raises(ValueError, match="same items"):
        recovery(result([1.0, 1.0]), other)


def test_a_function_ends_where_the_next_top_level_line_begins() -> None:
    body = "    if x:\n        return 1\n\n    return [\n]\n"
    assert humaneval.function_body(body) == body
    for tail in ("x = 1\n", "def g():\n", "# done\n", "```\nHere is"):
        assert humaneval.function_body(f"{body}\n{tail}") == body


def test_the_problems_are_read_and_made_into_scripts(tmp_path: Path) -> None:
    record = {
        "task_id": "T/0", "prompt": "def one():\n", "entry_point": "one",
        "canonical_solution": "    return 1\n", "test": "def check(f):\n    assert f() == 1\n",
    }  # fmt: skip
    path = tmp_path / "problems.jsonl.gz"
    path.write_bytes(gzip.compress(f"{json.dumps(record)}\n\n".encode()))
    (problem,) = humaneval.read(path)
    exec(humaneval.program(problem, problem.solution), {})
    with pytest.raises(AssertionError):
        exec(humaneval.program(problem, "    return 2\n"), {})


@pytest.mark.parametrize(
    ("checks", "good", "bad"),
    [
        ({"equals": ["hello"]}, '"Hello."', "Hello there"),
        ({"contains": ["4|four"]}, "It is 4.", "It is 42."),
        ({"absent": ["cute"]}, "A soft cat", "A CUTE cat"),
        ({"matches": "1, ?2"}, "1,2", "1,2,3"),
        ({"json": {"age": 36}}, ' {"age": 36} ', 'Sure: {"age": 36}'),
        ({"json": {"age": 36}}, '{"age": 36, "x": 1}', "[36]"),
        ({"words": [1, 2]}, "two words", "these are three"),
        ({"lines": [2, 2]}, "a\n\nb", "a"),
        ({"language": 5}, "The cat sat on the mat.", "RAMRAMRAMRAMRAMRAMRAMRAMRAMRAM"),
        ({"language": 5}, "Pommes et poires sont des fruits", "%% 12 $$ 34 a b c d e f @@@@@@"),
        ({"language": 5}, "one two three four five", "the the the the the the the the the"),
    ],
)  # fmt: skip
def test_checks_of_instructions(checks: dict[str, Any], good: str, bad: str) -> None:
    instruction = Instruction("demo", "?", checks)
    assert misses(instruction, good) == []
    assert misses(instruction, bad) == list(checks)


def test_the_instruction_set_is_well_formed_and_garbage_passes_none_of_it() -> None:
    items = instructions.load()
    assert 20 <= len(items) <= 30
    assert len({item.id for item in items}) == len(items)
    assert len({item.ask for item in items}) == len(items)
    for answer in ("", "RAM" * 60, "!" * 200, "0 " * 40, "\N{REPLACEMENT CHARACTER}" * 20):
        assert [item.id for item in items if not misses(item, answer)] == []


def test_unknown_names_are_refused_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="no task 'humanevil'") as caught:
        tasks.check(["instructions", "humanevil"])
    assert "humaneval" in caught.value.hint
    with pytest.raises(UsageError, match=r"no task file absent\.yaml"):
        tasks.check(["lm-eval:absent.yaml"])


def test_tasks_of_the_hub_are_refused_at_once_where_it_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lm_eval, "hub_answers", lambda: False)
    with pytest.raises(PlanError, match="hub cannot be reached") as caught:
        tasks.check(["lm-eval:mmlu"])
    assert ".yaml" in caught.value.hint
    local = tmp_path / "mine.yaml"
    local.touch()
    tasks.check([f"lm-eval:{local}"])


class Server:
    """An endpoint that answers with what the test says and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.owner = "llamacpp"
        self.status = 200
        self.choice: dict[str, Any] = {"text": " Paris", "message": {"content": "Paris"}}
        self.url = ""

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "demo", "owned_by": self.owner}]}
        self.asked.append(json.loads(body))
        return self.status, {"choices": [self.choice]}


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the names are the library's
            length = int(self.headers.get("Content-Length") or 0)
            status, document = state.answer(self.path, self.rfile.read(length))
            payload = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        state.url = f"http://127.0.0.1:{http.server_address[1]}"
        yield state
        http.shutdown()


def test_requests_are_greedy_and_independent_of_what_was_asked_before(server: Server) -> None:
    with Target.at(f"{server.url}/v1/") as target:
        assert target.complete("The capital is", 8, ("\n",)) == " Paris"
        assert target.chat("The capital?", 8) == "Paris"
    for request in server.asked:
        assert request["temperature"] == 0 and request["model"] == "demo"
        assert request["cache_prompt"] is False
    server.owner = "vllm"
    with Target.at(server.url) as target:
        target.chat("The capital?", 8)
    assert "cache_prompt" not in server.asked[-1]


def test_prompt_scores_are_asked_for_not_believed(server: Server) -> None:
    with Target.at(server.url) as target:
        assert not target.scores_prompts()  # it ignores `echo`, as llama.cpp does
        server.choice = {
            "text": "one two three four five",
            "logprobs": {"token_logprobs": [None, -1.0, -2.0, -1.0, -0.5]},
        }
        assert target.scores_prompts()
        server.status = 400
        assert not target.scores_prompts()


def test_a_server_that_fails_is_named_with_what_it_said(server: Server) -> None:
    server.status = 500
    with Target.at(server.url) as target, pytest.raises(ServerError, match="answered 500"):
        target.chat("?", 8)
    server.status = 401
    with Target.at(server.url) as target, pytest.raises(ServerError, match="wants an API key"):
        target.chat("?", 8)
    with pytest.raises(ServerError, match="nothing listens"):
        Target.at("http://127.0.0.1:9")
    with pytest.raises(UsageError, match="is not an endpoint"):
        Target.at("localhost:8080")


def test_the_instruction_set_over_an_endpoint(server: Server, tmp_path: Path) -> None:
    with Target.at(server.url) as target:
        (found,) = tasks.run(["instructions"], target, 2, Home(tmp_path), SILENT)
    assert (found.count, found.value) == (2, 0.5)  # "Paris" is the answer to the first alone
    assert found.items[1].detail == "missed: contains"
    assert found.as_json()["items"][0]["answer"] == "Paris"
