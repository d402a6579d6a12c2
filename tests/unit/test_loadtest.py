import json
import sys
from pathlib import Path

import httpx
import loadtest_modules
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loadtest_samples import HOST, closed_loop, result, sample

from deployer import loadtest
from deployer.errors import LoadTestError, UsageError
from deployer.loadtest import driver, exit_code, host, measure, storage
from deployer.loadtest.crew import Crew
from deployer.loadtest.endpoint import Endpoint, plain_words_for, words_for
from deployer.loadtest.levels import SMOKE_REQUESTS, level_of
from deployer.metrics import Limits
from deployer.progress import SILENT
from deployer.recipe import LoadTest, Slo

CONCURRENT = LoadTest(profile="concurrent", users=8, duration=20, warmup=3)
CLOSED, SMOKE = level_of(CONCURRENT), level_of(LoadTest())
SYNC = level_of(LoadTest(profile="sync"))


def stage_of(samples, limits, span=None):
    """The stage of one user's samples in the seconds 0 to 2."""
    part = measure.Part(tuple(samples), span or measure.Window(0, 2))
    return measure.stage(SYNC, [part], limits)


# --- the arithmetic -------------------------------------------------------------------------


def test_a_stage_counts_every_request_once():
    samples = closed_loop(errors=4)
    requests = result(samples).stages[0].requests
    assert requests.sent + requests.warmup == len(samples)
    assert requests.sent == requests.ok + requests.failed + requests.cutoff
    assert requests.errors == {"truncated": 2, "http_5xx": 2}
    assert requests.error_rate == pytest.approx(4 / (requests.ok + 4), abs=1e-6)


def test_failed_and_warm_up_requests_never_enter_a_latency():
    good = [sample(id=f"0-0-{i}") for i in range(3)]
    slow_failure = sample(error="truncated", first=60.0, last=90.0, closed=90.0)
    slow_start = sample(phase="warmup", first=60.0, last=90.0, closed=90.0)
    stage = stage_of([*good, slow_failure, slow_start], Limits())
    assert stage.latency_ms.ttft.n == 3
    assert stage.latency_ms.ttft.p95 == pytest.approx(100)
    assert stage.latency_ms.tpot.mean == pytest.approx(10)


def test_throughput_is_what_arrives_in_the_window():
    steady = closed_loop(users=8)
    stage = result(steady).stages[0]
    tokens = sum(1 for s in steady for t in s.chunks if 3 <= t < 23)
    assert stage.throughput.output_tokens_per_s == pytest.approx(tokens / 20, rel=0.001)
    assert stage.achieved == pytest.approx(8, rel=0.01)


def test_cut_off_requests_are_neither_good_nor_bad():
    samples = [sample(), sample(id="0-0-2", error="cutoff", last=None)]
    stage = stage_of(samples, Limits(ttft=0.5))
    assert (stage.requests.cutoff, stage.requests.error_rate) == (1, 0.0)
    assert stage.goodput.share == 1.0


def test_goodput_counts_failures_as_bad():
    samples = [sample(), sample(error="empty"), sample(first=2.0)]
    stage = stage_of(samples, Limits(ttft=0.5))
    assert stage.goodput.share == pytest.approx(1 / 3, abs=1e-6)
    assert stage.goodput.limits_ms == {"ttft": 500.0}


def test_the_window_starts_after_the_warm_up_and_ends_on_time():
    workers = [measure.Worker(0.0, 23.4, None, None), measure.Worker(0.2, 23.3, None, None)]
    assert measure.window(CLOSED, [], workers) == measure.Window(3.2, 23.2)
    smoke = [sample(phase="warmup", sent=0.1), sample(sent=1.0, closed=2.5)]
    assert measure.window(SMOKE, smoke, workers) == measure.Window(1.0, 2.5)


def test_tokens_are_null_when_one_is_unknown():
    tokens = result([sample(), sample(output_tokens=None, token_source="unknown")]).stages[0].tokens
    assert tokens.output is None and tokens.input == 128
    assert tokens.source == "unknown and usage"


# --- gates, validity, exit codes ------------------------------------------------------------


def slo(**limits):
    return CONCURRENT.model_copy(update={"slo": Slo(**limits)})


def test_gates_state_what_was_asked_and_measured():
    gates = result(closed_loop(), slo(ttft_p95_ms=1.0, e2e_p95_ms=60_000.0)).gates
    assert [(g.expression, g.passed) for g in gates] == [
        ("ttft_p95_ms <= 1", False),
        ("e2e_p95_ms <= 60000", True),
        ("error_rate <= 0", True),
    ]
    assert gates[0].value > 1


@pytest.mark.parametrize(
    ("limits", "errors", "worker", "expected"),
    [
        ({}, 0, (1.5, 6.0), 0),
        ({"ttft_p95_ms": 1.0}, 0, (1.5, 6.0), 1),
        ({}, 2, (1.5, 6.0), 1),
        ({"max_error_rate": 0.5}, 2, (1.5, 6.0), 0),
        ({}, 0, (20.1, 6.0), 3),
        ({}, 0, (1.5, 80.1), 3),
        ({"ttft_p95_ms": 1.0}, 0, (20.1, 6.0), 3),
        ({}, 2, (20.1, 6.0), 1),
        ({}, 0, (None, None), 0),
    ],
)
def test_exit_codes(limits, errors, worker, expected):
    made = result(closed_loop(errors=errors), slo(**limits), measure.Worker(0.0, 23.0, *worker))
    assert exit_code(made) == expected


def test_nothing_measured_is_invalid_not_failed():
    made = result([sample(phase="warmup")], CONCURRENT)
    assert exit_code(made) == 3
    assert "no request" in made.client.problems[0]


@pytest.mark.parametrize(
    ("factor", "valid"), [(1.0, True), (1.009, True), (1.02, False), (0.9, False)]
)
def test_the_server_must_have_counted_the_same_tokens(factor, valid):
    samples = closed_loop()
    tokens = sum(s.output_tokens for s in samples)
    made = result(samples, server_tokens=round(tokens * factor))
    assert made.client.valid is valid
    assert made.client.counted_tokens == tokens


def test_tokens_are_not_compared_when_some_are_unknown():
    samples = [
        *closed_loop(),
        sample(error="truncated", output_tokens=None, token_source="unknown"),
    ]
    made = result(samples, server_tokens=1)
    assert made.client.counted_tokens is None
    assert not any("counted" in problem for problem in made.client.problems)


def test_idle_users_make_a_measurement_invalid():
    made = result(closed_loop(users=4), CONCURRENT)
    assert "only 4.0 requests were under way" in made.client.problems[0]


def flag_names(samples, **kwargs):
    return [flag.name for flag in result(samples, **kwargs).flags]


def test_a_broken_model_is_flagged():
    assert "degenerate_output" not in flag_names(closed_loop())
    assert "degenerate_output" in flag_names([sample(text="RAM" * 50) for _ in range(30)])
    assert "degenerate_output" in flag_names([sample(error="empty", text="") for _ in range(30)])
    one_good = [*(sample(text="RAM" * 50) for _ in range(29)), sample()]
    assert "degenerate_output" not in flag_names(one_good)


def test_other_flags():
    assert flag_names(closed_loop()) == []
    assert "cutoff" in flag_names([*closed_loop(), sample(error="cutoff")])
    assert "few_requests" in flag_names([sample()])
    assert "tokens_unknown" in flag_names([sample(token_source="unknown")])
    busy = HOST.model_copy(update={"load_before": (9.0, 1.0, 1.0)})
    assert flag_names(closed_loop(), host=busy) == ["host_busy"]


def test_three_answers_are_kept_to_be_read():
    samples = [sample(text=f"answer {i}") for i in range(9)]
    assert [a.text for a in measure.answers(samples)] == ["answer 0", "answer 4", "answer 8"]
    assert measure.answers([]) == ()


# --- Locust's command line, settings and files ----------------------------------------------


def test_the_command_line_names_the_locustfile_and_no_secret(monkeypatch):
    monkeypatch.setenv("LOCUST_USERS", "999")
    monkeypatch.setenv("DEPLOYER_API_KEY", "from-the-shell")
    argv = driver.argv(CLOSED, Crew())
    assert argv[:3] == [sys.executable, "-m", "locust"]
    assert argv[argv.index("--users") + 1] == "8"
    assert float(argv[argv.index("--spawn-rate") + 1]) == pytest.approx(8 / 2.4, abs=0.001)
    env = driver.environment(Path("w.json"), "top-secret")
    assert "LOCUST_USERS" not in env and env["DEPLOYER_API_KEY"] == "top-secret"
    assert "DEPLOYER_API_KEY" not in driver.environment(Path("w.json"), None)
    assert not any("secret" in word for word in argv)


def test_the_settings_are_those_the_locustfile_knows():
    names = loadtest_modules.settings.NAMES
    for level in (CLOSED, SMOKE):
        assert set(driver.settings(level, 1)) <= set(names)
    assert driver.settings(SMOKE, 1)["requests"] == SMOKE_REQUESTS
    assert driver.settings(CLOSED, 1)["duration_s"] == 20.0


def test_progress_lines_of_several_workers_are_added_up():
    class Seen:
        calls: list = []  # noqa: RUF012

        def update(self, done=None, total=None, note=None):
            self.calls.append((done, total, note))

    seen = Seen()
    read = driver.follow(CLOSED, seen)
    read("[2026] locust.main: Starting")
    for pid in (1, 2):
        state = {"pid": pid, "seconds": 2.0, "done": 3, "failed": pid - 1, "tokens": 100}
        read("progress " + json.dumps(state))
    assert seen.calls == [
        (2.0, 23, "3 requests, 50 output tok/s"),
        (2.0, 23, "6 requests, 100 output tok/s, 1 failed"),
    ]


def test_gathering_counts_times_from_the_first_worker(tmp_path):
    for pid, start in ((1, 100.0), (2, 100.5)):
        (tmp_path / f"worker-{pid}.json").write_text(
            json.dumps(
                {"started": start, "stopping": 120.0, "lag_ms_p99": 1.0, "cpu_percent_max": 2.0}
            )
        )
        moved = sample(id=f"{pid}-0-0").shifted(-start)
        (tmp_path / f"samples-{pid}.jsonl").write_text(json.dumps(moved.as_json()) + "\n")
    raw = driver.gather(tmp_path)
    assert [s.sent for s in raw.samples] == [1.0, 1.5]
    assert [w.started for w in raw.workers] == [0.0, 0.5]


def test_several_workers_are_a_master_with_processes_at_a_port_of_their_own():
    assert "--processes" not in driver.argv(CLOSED, Crew())
    argv = driver.argv(CLOSED, Crew(3))

    def value(flag):
        return argv[argv.index(flag) + 1]

    assert value("--processes") == "3"
    assert value("--users") == "8"
    assert value("--master-port") == value("--master-bind-port") != "5557"
    assert value("--master-host") == value("--master-bind-host") == "127.0.0.1"


@pytest.mark.parametrize(("workload", "users"), [(CONCURRENT, "8 users"), (LoadTest(), "1 user")])
def test_workers_cannot_be_more_than_users(workload, users, tmp_path):
    with pytest.raises(UsageError, match=f"9 load workers cannot share {users}"):
        loadtest.run("http://127.0.0.1:1", workload, tmp_path, workers=9)


def test_a_lost_worker_makes_no_result(tmp_path, monkeypatch):
    def locust(*_, **__):
        report = {"started": 1.0, "stopping": 9.0, "lag_ms_p99": 1.0, "cpu_percent_max": 2.0}
        (tmp_path / "worker-1.json").write_text(json.dumps(report))
        (tmp_path / "samples-1.jsonl").write_text(json.dumps(sample().as_json()) + "\n")

    monkeypatch.setattr(driver.process, "run", locust)
    known = dict.fromkeys(("run_id", "endpoint", "model"), "")
    known["folder"] = str(tmp_path)
    with SILENT.step("") as step:
        assert len(driver.drive(CLOSED, known, [], step, None).workers) == 1
        with pytest.raises(LoadTestError, match="1 of 2 workers came to their end"):
            driver.drive(CLOSED, known, [], step, None, Crew(2))


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with storage.folder_for("run", tmp_path) as folder:
        assert not (tmp_path / "run").exists()
        (folder / "x").write_text("x")
    assert (tmp_path / "run" / "x").is_file()
    with pytest.raises(KeyboardInterrupt), storage.folder_for("other", tmp_path) as folder:
        (folder / "locust.log").write_text("x")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_log_of_a_failed_run_is_kept(tmp_path):
    with pytest.raises(LoadTestError), storage.folder_for("run", tmp_path) as folder:
        (folder / "locust.log").write_text("why")
        raise LoadTestError("no")
    assert (folder / "locust.log").read_text() == "why"
    assert not (tmp_path / "run").exists()


# --- the endpoint ---------------------------------------------------------------------------


def endpoint(handler):
    return Endpoint("http://server", httpx.Client(transport=httpx.MockTransport(handler)))


def refuse(_request):
    raise httpx.ConnectError("refused")


@pytest.mark.parametrize(
    ("handler", "message", "hint"),
    [
        (refuse, "nothing listens at http://server", "deployer serve"),
        (lambda r: httpx.Response(401), "wants an API key", "DEPLOYER_API_KEY"),
        (lambda r: httpx.Response(503, text="loading"), "503: loading", "logs"),
        (lambda r: httpx.Response(200, text="<html>"), "JSON object", "OpenAI"),
        (lambda r: httpx.Response(200, json={"data": []}), "lists no model", "OpenAI"),
    ],
)
def test_a_server_that_is_not_ready_is_told_clearly(handler, message, hint):
    with endpoint(handler) as target, pytest.raises(LoadTestError) as caught:
        target.model()
    assert message in caught.value.message and hint in caught.value.hint


def test_a_prompt_beyond_the_context_is_told_in_the_servers_words():
    reason = {"error": {"message": "request (3031 tokens) exceeds the context"}}
    with (
        endpoint(lambda r: httpx.Response(400, json=reason)) as target,
        pytest.raises(LoadTestError, match="3031 tokens") as caught,
    ):
        target.prompt_tokens("m", "x")
    assert "context" in caught.value.hint


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://x", "http://"])
def test_what_is_no_endpoint_is_a_usage_error(url):
    with pytest.raises(UsageError, match="not an endpoint"):
        Endpoint.at(url)


def test_a_v1_suffix_is_forgiven():
    with Endpoint.at("http://127.0.0.1:8080/v1/") as target:
        assert target.url == "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("llamacpp:tokens_predicted_total 42\n", 42),
        ('vllm:generation_tokens_total{m="a"} 4.0\nvllm:generation_tokens_total{m="b"} 5\n', 9),
        ("other_total 3\n", None),
    ],
)
def test_token_counters(text, expected):
    with endpoint(lambda r: httpx.Response(200, text=text)) as target:
        assert target.generated_tokens() == expected


def test_no_metrics_is_no_error():
    with endpoint(lambda r: httpx.Response(404)) as target:
        assert target.generated_tokens() is None
    with endpoint(refuse) as target:
        assert target.generated_tokens() is None


def test_behind_a_router_the_tokens_of_all_its_servers_count():
    def router(request):
        if request.url.path == "/list_workers":
            return httpx.Response(200, json={"urls": ["http://one:1", "http://two:2"]})
        tokens = {"one": 40, "two": 2}.get(request.url.host, 7)
        return httpx.Response(200, text=f"llamacpp:tokens_predicted_total {tokens}\n")

    with endpoint(router) as target:
        assert target.generated_tokens() == 42


@pytest.mark.parametrize("listed", [[], {}, {"urls": []}, {"urls": [1]}, {"urls": "http://one"}])
def test_a_strange_list_of_servers_is_none(listed):
    def server(request):
        if request.url.path == "/list_workers":
            return httpx.Response(200, json=listed)
        return httpx.Response(200, text="llamacpp:tokens_predicted_total 42\n")

    with endpoint(server) as target:
        assert target.generated_tokens() == 42


def test_tokens_by_the_servers_tokenizer():
    def vllm(request):
        asked = json.loads(request.content)
        return httpx.Response(200 if "prompt" in asked else 400, json={"tokens": [1, 2, 3]})

    with endpoint(vllm) as target:
        assert target.count_tokens("a b c") == 3
    with endpoint(lambda r: httpx.Response(404)) as target:
        assert target.count_tokens("a b c") is None


def test_words_for_a_prompt_of_wanted_length():
    measured = {8: 66, 40: 130}  # 2 tokens a word, 50 for the rest
    assert words_for(250, measured) == 100
    assert words_for(10, measured) == 1, "the instruction alone is longer"
    assert words_for(130, {}) == 50
    assert (plain_words_for(100, measured), plain_words_for(100, {})) == (50, 50)


# --- host -----------------------------------------------------------------------------------


def test_the_host_is_described():
    described = host.describe()
    assert described.threads >= 1 and described.memory_bytes > 1 << 28 and described.cpu
    assert host.versions()["locust"]


def test_the_commit_is_read_from_a_checkouts_files(tmp_path):
    assert host.git_commit(tmp_path) is None
    git = tmp_path / ".git"
    git.mkdir()
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text("# pack\n" + "a" * 40 + " refs/heads/main\n")
    assert host.git_commit(tmp_path) == "a" * 40
    (git / "HEAD").write_text("b" * 40 + "\n")
    assert host.git_commit(tmp_path) == "b" * 40


# --- the answer of one request (loadtests/answer.py) ----------------------------------------


@pytest.fixture(scope="module")
def answer_class():
    return loadtest_modules.answer.Answer


def fed(answer_class, *events, done=True, start=1.1, status=200):
    one = answer_class("0-0-0", "measured", "[x] p", 1.0, 1.0)
    one.status = status
    for i, event in enumerate(events):
        line = event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode()
        one.feed(line + b"\n", round(start + i / 10, 6))
    if done:
        one.feed(b"data: [DONE]\n", start + len(events) / 10)
    return one


def delta(finish=None, **content):
    return {"choices": [{"index": 0, "delta": content, "finish_reason": finish}]}


ROLE = delta(role="assistant", content=None)


def usage(tokens, cached=3):
    return {
        "choices": [],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


def test_the_role_chunk_is_no_first_token(answer_class):
    made = fed(
        answer_class, ROLE, delta(content="a"), delta(content="b"), delta("length"), usage(2)
    ).sample(2.0)
    assert made.ok and made.text == "ab"
    assert (made.first, made.last, made.closed) == (1.2, pytest.approx(1.3), 2.0)
    assert (made.output_tokens, made.n_first, made.prompt_tokens, made.cached_tokens) == (
        2,
        1,
        9,
        3,
    )
    assert made.token_source == "usage"


def test_the_end_token_arrives_with_the_finish(answer_class):
    made = fed(answer_class, delta(content="a"), delta("stop"), usage(2)).sample(2.0)
    assert made.last == pytest.approx(1.2)


def test_reasoning_is_a_first_token_but_no_first_output(answer_class):
    made = fed(answer_class, delta(reasoning_content="hm"), delta(content="a"), usage(2)).sample(
        2.0
    )
    assert (made.first, made.first_output) == (1.1, 1.2)


def test_a_conversation_goes_on_without_the_reasoning(answer_class):
    events = (delta(reasoning_content="hm"), delta(reasoning_content="so", content="a"))
    one = fed(answer_class, *events, delta(reasoning_content="!"), delta(content="b"), usage(4))
    assert ("".join(one.said), one.text) == ("ab", "hmsoa!b")


def test_a_tool_call_is_a_first_token(answer_class):
    made = fed(answer_class, ROLE, delta(tool_calls=[{"index": 0}]), usage(5)).sample(2.0)
    assert made.ok and made.first == 1.2


def test_usage_in_every_chunk_tells_the_first_chunks_tokens(answer_class):
    first = {**delta(content="abc"), "usage": {"completion_tokens": 3}}
    made = fed(answer_class, first, delta(content="d"), usage(4)).sample(2.0)
    assert made.n_first == 3


def test_without_usage_the_whole_text_is_kept_to_be_tokenized(answer_class):
    made = fed(answer_class, delta(content="word " * 100)).sample(2.0)
    assert made.token_source == "unknown" and len(made.text) == 500
    assert made.output_tokens is None, "never the number of chunks"


@pytest.mark.parametrize(
    ("events", "done", "error"),
    [
        ([delta(content="a")], False, "truncated"),
        ([], False, "truncated"),
        ([ROLE, delta("stop")], True, "empty"),
        ([delta(content="a"), {"error": {"message": "died"}}], True, "sse_error"),
        ([b"error: {}"], False, "sse_error"),
        ([b"event: error"], False, "sse_error"),
        ([b"data: {broken"], True, "sse_error"),
        ([b"data: [1, 2]"], True, "sse_error"),
        ([b'data: {"choices": [7]}'], True, "sse_error"),
        ([b": a comment", b"", delta(content="a")], True, None),
    ],
)
def test_error_classes_of_a_stream(answer_class, events, done, error):
    assert fed(answer_class, *events, done=done).sample(2.0).error == error


TEXTS = st.sampled_from([" a", "b", "", "é𝄞", 'q"', "\\", "new\nline", 'x", "y": "z', "content"])
DELTAS = st.one_of(
    st.builds(dict, content=TEXTS),
    st.builds(dict, content=TEXTS),
    st.builds(dict, role=st.just("assistant"), content=st.one_of(st.none(), TEXTS)),
    st.builds(dict, reasoning_content=TEXTS, content=st.none()),
    st.builds(dict, content=TEXTS, reasoning=TEXTS),
    st.builds(dict, tool_calls=st.just([{"index": 0}]), content=TEXTS),
    st.builds(dict, content=TEXTS, note=st.sampled_from(['"content": "x"', "content"])),
)
EVENTS = st.lists(
    st.tuples(DELTAS, st.sampled_from([None, None, None, "stop"])), min_size=6, max_size=12
)


@given(EVENTS, st.sampled_from([None, (",", ":")]), st.booleans())
def test_what_is_read_without_parsing_is_what_parsing_gives(
    answer_class, events, separators, ascii_only
):
    fast = answer_class("0-0-0", "measured", "[x] p", 1.0, 1.0)
    slow = answer_class("0-0-0", "measured", "[x] p", 1.0, 1.0)
    for number, (content, finish) in enumerate(events):
        event = delta(finish, **content)
        line = json.dumps(event, separators=separators, ensure_ascii=ascii_only)
        raw = b"data: " + line.encode() + b"\n"
        fast.feed(raw, float(number))
        slow.pattern = None
        slow.feed(raw, float(number))
    fast.pattern = slow.pattern = None
    assert vars(fast) == vars(slow)


def test_most_chunks_of_a_stream_need_no_parsing(answer_class, monkeypatch):
    parsed = []
    real = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or real(text))
    words = [delta(content=f" word{n}") for n in range(50)]
    made = fed(answer_class, ROLE, *words, delta("stop"), usage(51)).sample(9.0)
    assert made.ok and len(made.chunks) == 50 and made.output_tokens == 51
    assert len(parsed) == 4, "the role, the first word, the finish, the usage"


def test_too_few_tokens_are_an_error_only_when_the_end_is_ignored(answer_class):
    assert fed(answer_class, delta(content="a"), usage(1)).sample(2.0).ok
    made = fed(answer_class, delta(content="a"), usage(1)).sample(2.0, least_tokens=2)
    assert made.error == "short_output" and "1 of 2" in made.detail


def test_prompts_are_repeatable_and_begin_with_a_nonce():
    make, nonce = loadtest_modules.prompts.make, loadtest_modules.prompts.nonce
    assert make(5, 1, "aa") == make(5, 1, "aa") != make(5, 2, "aa")
    assert make(5, 1, nonce("r", 1)).startswith(f"[{nonce('r', 1)}] ")
    assert nonce("r", 1) != nonce("r", 2)
    assert len(make(500, 1, "a").split()) > 500
