"""Real Locust against a server that knows the truth (tests/fake_sse_server.py)."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from fake_sse_server import FAULTS, Script, serve

from deployer import loadtest, report, results
from deployer.errors import LoadTestError
from deployer.loadtest import driver
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
    assert stage.duration_s == pytest.approx(3.0, abs=0.2)
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
        return driver.drive(level_of(workload), {**basis, **known}, rows, step, None, workers)


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
