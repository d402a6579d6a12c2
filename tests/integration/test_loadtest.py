"""Real Locust against a server that knows the truth (tests/fake_sse_server.py)."""

from __future__ import annotations

import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from certificates import make_certificate
from fake_sse_server import FAULTS, Script, serve

from deployer import loadtest, report, results
from deployer.errors import LoadTestError
from deployer.loadtest import driver, sweep
from deployer.loadtest.crew import Crew
from deployer.loadtest.levels import SMOKE_REQUESTS, level_of
from deployer.metrics import e2e, tpot
from deployer.progress import SILENT
from deployer.recipe import LoadTest, Slo

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

TOLERANCE_MS = 15.0
"""Of the median, on a noisy machine; docs/loadtest.md has what is usual (below 1 ms)."""


def concurrent(users: int, duration: int = 3, **more: object) -> LoadTest:
    return LoadTest(profile="concurrent", users=users, duration=duration, warmup=1, **more)


def no_locust_left() -> bool:
    mine = psutil.Process().children(recursive=True)
    return not any("locust" in " ".join(child.cmdline()) for child in mine)


@pytest.mark.parametrize("users", [1, 8, 32])
def test_it_reports_the_truth(users, tmp_path):
    script = Script(ttft=0.12, tpot=0.01, tokens=21, first=3, each=2, reasoning=3)
    with serve(script) as server:
        made = loadtest.run(server.url, concurrent(users), tmp_path)
        samples = results.read_samples(loadtest.folder_of(tmp_path, made))
    assert samples and all(s.ok for s in samples)
    first, whole, pace = [], [], []
    for sample in samples:
        truth = server.of(sample.prompt)
        assert sample.output_tokens == truth.tokens == 21
        assert sample.n_first == 3, "several tokens came in the first chunk"
        assert len(sample.chunks) == len(truth.written)
        first.append(sample.first - sample.sent - (truth.written[0] - truth.received))
        whole.append(e2e(sample) - (truth.written[-1] - truth.received))
        pace.append(tpot(sample) - (truth.written[-1] - truth.written[0]) / 18)
    errors = [1000 * abs(statistics.median(values)) for values in (first, whole, pace)]
    print(f"\n{users} streams, median error of TTFT, E2E, TPOT: {errors} ms")
    assert max(errors) < TOLERANCE_MS
    assert made.stages[0].latency_ms.ttfo.p50 > made.stages[0].latency_ms.ttft.p50
    assert made.client.server_tokens == made.client.counted_tokens
    assert made.stages[0].duration_s == pytest.approx(3.0, abs=0.05)


def test_a_master_and_two_workers_make_the_same_kind_of_result(tmp_path):
    """Shared users, one result: every request of both workers is in it, and every one is true."""
    script = Script(ttft=0.05, tpot=0.01, tokens=16)
    with serve(script) as server:
        alone = loadtest.run(server.url, concurrent(6), tmp_path)
        before = len(server.exchanges)
        made = loadtest.run(server.url, concurrent(6), tmp_path, workers=2)
        asked = len(server.exchanges) - before
    samples = results.read_samples(loadtest.folder_of(tmp_path, made))
    assert (alone.client.workers, made.client.workers) == (1, 2)
    assert made.as_json().keys() == alone.as_json().keys()
    assert {path.name for path in loadtest.folder_of(tmp_path, made).iterdir()} == {
        path.name for path in loadtest.folder_of(tmp_path, alone).iterdir()
    }
    assert len(samples) == asked and all(s.ok for s in samples)
    assert len({s.id for s in samples}) == asked, "no two workers use one name"
    of_worker = [sum(s.id.startswith(f"{worker}-") for s in samples) for worker in (0, 1)]
    assert sum(of_worker) == asked and min(of_worker) > 0.3 * asked
    stage = made.stages[0]
    assert stage.requests.sent + stage.requests.warmup == asked
    assert (stage.target, stage.requests.failed, stage.requests.cutoff) == (6, 0, 0)
    assert stage.duration_s == pytest.approx(3.0, abs=0.5)
    assert stage.throughput.requests_per_s == pytest.approx(
        alone.stages[0].throughput.requests_per_s, rel=0.2
    )
    assert made.client.server_tokens == made.client.counted_tokens
    assert no_locust_left()


def test_two_workers_let_their_streams_end(tmp_path):
    """Longer than the three seconds that Locust's master gives forked workers to end."""
    script = Script(ttft=0.05, tpot=0.35, tokens=16)
    with serve(script) as server:
        raw = drive(server, tmp_path, concurrent(2, duration=1), workers=2)
    assert len(raw.samples) == 2 and all(s.ok for s in raw.samples)


def test_an_open_loop_sends_by_the_clock_however_slow_the_answers_are(tmp_path):
    """One answer takes 2 s; eight a second are due. A closed loop of one would send two."""
    script = Script(ttft=1.9, tpot=0.01, tokens=11)
    workload = LoadTest(profile="constant", rate=8.0, duration=3, warmup=1, output_tokens=11)
    with serve(script) as server:
        made = loadtest.run(server.url, workload, tmp_path)
        samples = results.read_samples(loadtest.folder_of(tmp_path, made))
    assert [round(s.due, 3) for s in samples] == [n / 8 for n in range(32)]
    assert made.stages[0].requests.sent == 24 and all(s.ok for s in samples)
    late = [server.of(s.prompt).received - first for s, first in zip(samples, due(samples, server),
                                                                     strict=True)]  # fmt: skip
    assert statistics.median(map(abs, late)) < 0.05, "the server saw them when they were due"
    stage = made.stages[0]
    assert stage.offered == pytest.approx(8.0, rel=0.02)
    assert stage.latency_ms.e2e_from_schedule.p50 >= stage.latency_ms.e2e.p50 >= 2000


def due(samples, server) -> list[float]:
    """When each request was due on the server's clock, by the first one it saw."""
    origin = server.of(samples[0].prompt).received - samples[0].sent
    return [origin + s.due for s in samples]


class Notes(type(SILENT)):
    """Keeps what is noted, and starts a worker for each address to join."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.joined: list[subprocess.Popen[bytes]] = []

    def note(self, message):
        url = message.split()[-1]
        command = [sys.executable, "-m", "deployer", "loadtest", "join", url]
        self.joined = [subprocess.Popen(command) for _ in range(self.workers)]


def test_workers_of_other_machines_join_and_bring_what_they_measured(tmp_path):
    """The loopback stands for the network between the machines."""
    workload = LoadTest(
        profile="constant", rate=20, duration=3, warmup=1, output_tokens=9, trials=2
    )
    notes = Notes(2)
    with serve(Script(ttft=0.05, tpot=0.005, tokens=9)) as server:
        made = loadtest.run(
            server.url, workload, tmp_path, notes, workers=2, listen=f"127.0.0.1:{port_pair()}"
        )
        samples = results.read_samples(loadtest.folder_of(tmp_path, made))
        truth = {e.prompt: e for e in server.exchanges}
    assert [worker.wait(20) for worker in notes.joined] == [0, 0]
    assert made.client.workers == 2
    assert (made.stages[0].requests.sent, made.stages[0].requests.failed) == (120, 0)
    assert {s.id.split("-")[0] for s in samples} == {"0", "1"}
    late = [s.due - samples[0].due for s in samples if s.trial == 0]
    assert late == pytest.approx([0.05 * n for n in range(80)], abs=0.1), "one clock for all"
    assert {truth[s.prompt].tokens for s in samples} == {9}
    assert made.stages[0].latency_ms.ttft.p50 == pytest.approx(50, abs=TOLERANCE_MS)
    assert no_locust_left()


def port_pair() -> int:
    """A free port whose next one is free as well."""
    while True:
        with socket.socket() as one, socket.socket() as next_one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            with suppress(OSError, OverflowError):
                next_one.bind(("127.0.0.1", port + 1))
                return int(port)


def test_two_workers_share_an_open_loop(tmp_path):
    workload = LoadTest(profile="poisson", rate=20.0, duration=3, warmup=1)
    with serve(Script(ttft=0.02, tpot=0.002)) as server:
        made = loadtest.run(server.url, workload, tmp_path, workers=2)
        samples = results.read_samples(loadtest.folder_of(tmp_path, made))
        plan = (loadtest.folder_of(tmp_path, made) / "plan.jsonl").read_text().splitlines()
    assert len(samples) == len(plan) == len(server.exchanges)
    assert {s.id.split("-")[0] for s in samples} == {"0", "1"}
    assert made.client.workers == 2
    assert not any("planned" in problem for problem in made.client.problems)


def test_a_sweep_stops_beyond_what_the_server_can_do(tmp_path, monkeypatch):
    """Four slots of 0.1 s each: 40 requests a second and no more."""
    monkeypatch.setattr(sweep, "APART", 3.0)
    workload = LoadTest(profile="sweep", rate=15.0, duration=2, warmup=1, output_tokens=9)
    with serve(Script(ttft=0.06, tpot=0.005, tokens=9, slots=4)) as server:
        made = loadtest.run(server.url, workload, tmp_path, pages=report.PAGES)
    asked = [e.prompt for e in server.exchanges]
    assert len(set(asked)) == len(asked), "no rate may find its prompts in the server's cache"
    stages = made.stages
    assert stages[made.knee].target < stages[-1].target and stages[-1].saturated
    assert stages[-1].target in (30.0, 60.0)
    folders = [p.name for p in loadtest.folder_of(tmp_path, made).iterdir() if p.is_dir()]
    assert sorted(folders) == [f"stage-{n + 1}-trial-1" for n in range(len(stages))]


def test_a_trace_is_replayed_at_its_times_with_its_lengths(tmp_path):
    lines = [
        {"timestamp": 400 * n, "input_length": 600, "output_length": 5 + n, "hash_ids": [7, n]}
        for n in range(5)
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    workload = LoadTest(profile="replay", trace=str(trace), duration=10, warmup=0)
    with serve(Script(ttft=0.02, tpot=0.002)) as server:
        made = loadtest.run(server.url, workload, tmp_path / "out")
        samples = results.read_samples(loadtest.folder_of(tmp_path / "out", made))
    assert [s.due for s in samples] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6])
    assert [e.body["max_tokens"] for e in server.exchanges] == [5, 6, 7, 8, 9]
    one, other = (e.prompt.split() for e in server.exchanges[:2])
    assert one[:200] == other[:200] and one[-1] != other[-1], "the first block is shared"
    assert made.workload.lengths == "trace" and "trace.jsonl sha256:" in made.workload.source


def test_a_conversation_goes_on_from_its_own_answers(tmp_path):
    workload = LoadTest(profile="chat", users=2, turns=3, think=0.1, duration=2, warmup=0)
    with serve(Script(ttft=0.02, tpot=0.002, tokens=4)) as server:
        made = loadtest.run(server.url, workload, tmp_path)
    said = [e.body["messages"] for e in server.exchanges]
    assert {len(messages) for messages in said} == {1, 3, 5}
    last = next(messages for messages in said if len(messages) == 5)
    assert [m["role"] for m in last] == ["user", "assistant"] * 2 + ["user"]
    assert last[1]["content"] == " word0 word1 word2 word3"
    assert [turn.turn for turn in made.stages[0].turns] == [0, 1, 2]
    assert not any("under way" in problem for problem in made.client.problems)


def test_a_prefix_is_shared_and_a_warm_cache_repeats_itself(tmp_path):
    with serve(Script(ttft=0.01, tpot=0.001)) as server:
        workload = LoadTest(profile="prefix", users=2, duration=1, warmup=0, prefix_tokens=100)
        loadtest.run(server.url, workload, tmp_path)
        systems = {e.body["messages"][0]["content"] for e in server.exchanges}
        users = {e.prompt for e in server.exchanges}
        assert len(systems) == 1 and len(users) == len(server.exchanges) > 2
        server.exchanges.clear()
        workload = LoadTest(profile="concurrent", users=2, duration=1, warmup=0, cache="warm",
                            prompt_tokens_sd=20, trials=2)  # fmt: skip
        made = loadtest.run(server.url, workload, tmp_path)
        assert len({e.prompt for e in server.exchanges}) == 8 < len(server.exchanges)
    assert made.workload.cache_mode == "warm"
    assert made.client.server_tokens == made.client.counted_tokens
    assert made.stages[0].trials["ttft_p50_ms"].n == 2


def test_every_fault_is_classified(tmp_path):
    faults = (None, *(fault for fault in FAULTS if fault != "hang"))
    with serve(Script(ttft=0.02, tpot=0.004, faults=faults)) as server:
        made = loadtest.run(server.url, concurrent(8), tmp_path)
        samples = results.read_samples(loadtest.folder_of(tmp_path, made))
    expected = {
        None: None, "http_400": "http_4xx", "http_429": "http_429", "http_500": "http_5xx",
        "sse_error": "sse_error", "truncated": "truncated", "reset": "truncated",
        "drop": "connect", "empty": "empty",
    }  # fmt: skip
    seen = {server.of(s.prompt).fault: s.error for s in samples}
    assert seen == expected
    assert loadtest.exit_code(made) == 1
    assert set(made.stages[0].requests.errors) == set(expected.values()) - {None}
    assert made.stages[0].latency_ms.ttft.n == made.stages[0].requests.ok


def drive(
    server, folder: Path, workload: LoadTest, workers: int = 1, **known: object
) -> driver.Raw:
    basis = {
        "run_id": "r", "folder": str(folder), "endpoint": server.url, "model": "m",
        "seed": 1, "temperature": 0.0, "ignore_eos": workload.ignore_eos,
    }  # fmt: skip
    rows = [{"words": 4, "tokens": workload.output_tokens}]
    with SILENT.step("") as step:
        told = {**basis, **known}
        return driver.drive(level_of(workload), told, rows, step, None, Crew(workers))


def test_a_silent_server_is_a_timeout(tmp_path):
    with serve(Script(ttft=0.02, faults=(None, "hang"))) as server:
        raw = drive(server, tmp_path, concurrent(2), timeout_s=1.0)
    late = [s for s in raw.samples if not s.ok]
    assert late and {s.error for s in late} == {"timeout"}
    assert all(0.9 < s.closed - s.sent < 3.0 for s in late)


def test_what_outlasts_the_drain_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "DRAIN_S", 1)
    with serve(Script(faults=("hang",))) as server:
        raw = drive(server, tmp_path, concurrent(2, duration=1))
    assert [s.error for s in raw.samples] == ["cutoff", "cutoff"]


def test_a_port_that_closes_is_a_connect_error(tmp_path):
    with serve(Script()) as server:
        pass
    raw = drive(server, tmp_path, concurrent(2, duration=1))
    assert {s.error for s in raw.samples} == {"connect"}
    assert len(raw.samples) < 40, "a refusing server is not flooded"


def test_a_run_ignores_the_end_of_text_only_when_told(tmp_path):
    with serve(Script(tokens=10, ttft=0.01, tpot=0.001)) as server:
        raw = drive(server, tmp_path, concurrent(1, duration=1, ignore_eos=True))
    assert {s.error for s in raw.samples} == {"short_output"}


def test_a_smoke_test_leaves_everything_it_promises(tmp_path):
    script = Script(key="s3cret-key", word=" lamp", usage=False)
    workload = LoadTest(profile="smoke", output_tokens=16, slo=Slo(ttft_p95_ms=5000.0))
    with serve(script) as server:
        made = loadtest.run(
            server.url, workload, tmp_path, api_key="s3cret-key", server={"engine": "fake"},
            pages=report.PAGES,
        )  # fmt: skip
    folder = loadtest.folder_of(tmp_path, made)
    assert {path.name for path in folder.iterdir()} == {
        "result.json", "requests.jsonl", "requests.csv", "report.html", "summary.md",
        "locust.log", "workload.json", "plan.jsonl",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert results.read_result(folder) == made
    stage = made.stages[0]
    assert (stage.requests.ok, stage.requests.warmup) == (SMOKE_REQUESTS, 1)
    assert stage.tokens.source == "tokenized" and stage.tokens.output == 5 * 16
    assert loadtest.exit_code(made) == 0
    assert [flag.name for flag in made.flags if flag.name != "host_busy"] == ["degenerate_output"]
    assert not any(b"s3cret-key" in path.read_bytes() for path in folder.iterdir())


def test_a_wrong_token_count_is_an_invalid_measurement(tmp_path):
    with serve(Script(counted=1.5, ttft=0.01, tpot=0.001)) as server:
        made = loadtest.run(server.url, concurrent(2, duration=2), tmp_path)
    assert "the server counted" in made.client.problems[0]
    assert loadtest.exit_code(made) == 3


def test_nothing_listening_is_told_before_anything_starts(tmp_path):
    with serve() as server:
        pass
    with pytest.raises(LoadTestError, match="nothing listens") as caught:
        loadtest.run(server.url, LoadTest(), tmp_path)
    assert "deployer serve" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_ends_locust_and_leaves_nothing(tmp_path):
    class Interrupting:
        def update(self, done=None, total=None, note=None):
            if total:
                raise KeyboardInterrupt

    class Progress(type(SILENT)):
        def step(self, title):
            from contextlib import nullcontext

            return nullcontext(Interrupting())

    with serve(Script()) as server, pytest.raises(KeyboardInterrupt):
        loadtest.run(server.url, concurrent(4, duration=30), tmp_path, Progress())
    assert no_locust_left()
    assert list(tmp_path.iterdir()) == []


def test_when_locust_fails_its_log_is_shown_and_kept(tmp_path, monkeypatch):
    broken = tmp_path / "here" / "locustfile.py"
    broken.parent.mkdir()
    broken.write_text("raise RuntimeError('the locustfile is broken')\n")
    broken.with_name("prompts.py").write_text("def make(*_): return 'p'\n")
    monkeypatch.setattr(driver, "locustfile", lambda: broken)
    with (
        serve() as server,
        pytest.raises(LoadTestError, match="the locustfile is broken") as caught,
    ):
        loadtest.run(server.url, LoadTest(), tmp_path / "out")
    log = Path(caught.value.hint.removeprefix("The whole log is in ").removesuffix("."))
    assert "RuntimeError" in log.read_text()


def test_the_locustfile_runs_by_hand(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("DEPLOYER_", "LOCUST_"))}
    argv = [sys.executable, "-m", "locust", "-f", str(driver.locustfile()), "--headless",
            "-u", "2", "-r", "2", "-t", "4s", "--stop-timeout", "5"]  # fmt: skip
    with serve(Script(ttft=0.01, tpot=0.001)) as server:
        done = subprocess.run(
            [*argv, "--host", server.url],
            env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(server.exchanges) > 2
    assert list(tmp_path.iterdir()) == [], "by hand it writes no files"


def test_locusts_web_page_starts_our_users(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("DEPLOYER_", "LOCUST_"))}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "locust", "-f", str(driver.locustfile()),
            "--web-host", "127.0.0.1", "--web-port", str(port)]  # fmt: skip
    page = f"http://127.0.0.1:{port}"
    with serve(Script(ttft=0.01, tpot=0.001)) as server:
        child = subprocess.Popen([*argv, "--host", server.url], env=env, cwd=tmp_path,
                                 stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            assert soon(lambda: httpx.get(page).status_code == 200), "the page is there"
            asked = {"user_count": 2, "spawn_rate": 2, "host": server.url}
            assert httpx.post(f"{page}/swarm", data=asked).json()["success"]
            assert soon(lambda: counted(page) >= 3), "it counts our requests"
            httpx.get(f"{page}/stop")
        finally:
            child.terminate()
            child.wait(20)
    assert len(server.exchanges) >= 3


def counted(page: str) -> int:
    """Requests that Locust's page shows, by our name for them."""
    stats = httpx.get(f"{page}/stats/requests").json()["stats"]
    return sum(row["num_requests"] for row in stats if row["name"] == "/v1/chat/completions")


def soon(true, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if true():
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    return False


def test_an_encrypted_connection_is_read_as_well(tmp_path):
    from gevent import socket as green
    from gevent import ssl as green_ssl
    from loadtest_modules import wire

    make_certificate(tmp_path, "wire")
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    trusting = green_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.load_verify_locations(tmp_path / "cert.pem")
    got: list[bytes] = []

    def take(data):
        got.append(data)
        return not data

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve_one():
            with served.wrap_socket(listener.accept()[0], server_side=True) as there:
                there.sendall(b"chunk")

        server = threading.Thread(target=serve_one)
        server.start()
        plain = green.create_connection(listener.getsockname())
        with trusting.wrap_socket(plain, server_hostname="127.0.0.1") as here:
            wire.Wire(here).read(take, 2.0)
        server.join(5)
    assert got == [b"chunk", b""]
