"""Footprints: measured once, kept, estimated where nothing can be started. The server is fake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_sse_server import FakeServer, Script
from fake_sse_server import serve as fake
from made_up_bundle import MIB, footprint, manifest

from deployer.artifacts import Bundle
from deployer.errors import PlanError, ServerError
from deployer.home import Home
from deployer.progress import Silent
from deployer.serving import ServerRecord
from deployer.workflow import footprints

RECORD = ServerRecord(
    name="footprint-demo", endpoint="", supervisor_pid=1, engine_pid=2, bundle="b", log="l",
    state="ready", server="xllamacpp", model="demo", ready_seconds=1.5,
    peak_rss_bytes=700 * MIB,
)  # fmt: skip
SERVE = {"parallel": 3, "context": 512, "threads": 1}


class Warnings(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)


class Started:
    """Stands for `served`: gives the fake server's record and counts the starts."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.starts = 0
        self.error: PlanError | None = None

    @contextmanager
    def __call__(self, bundle: Bundle, serve: Any, *_: Any) -> Iterator[ServerRecord]:
        if self.error:
            raise self.error
        assert (serve.host, serve.port, serve.api_key_file) == ("127.0.0.1", 0, None)
        self.starts += 1
        yield RECORD.model_copy(update={"endpoint": self.server.url})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    with fake(Script(ttft=0.05, tpot=0.001)) as server:
        double = Started(server)
        monkeypatch.setattr(footprints, "served", double)
        monkeypatch.setattr(footprints.serving, "status", lambda *_: [RECORD])
        yield double


def bundle(tmp_path: Path, **changes: Any) -> Bundle:
    return Bundle(tmp_path / "bundle", manifest(**{"serve": SERVE, **changes}))


def take(of: Bundle, home: Home, progress: Silent | None = None, estimate: bool = False) -> Any:
    return footprints.footprint(of, home, progress or Silent(), estimate=estimate)


def test_every_slot_gets_a_long_request_of_its_own_at_the_same_time(
    started: Started, home: Home, tmp_path: Path
) -> None:
    found = take(bundle(tmp_path), home)
    assert found.measured and found.requests == 3
    assert (found.memory_bytes, found.ready_seconds) == (700 * MIB, 1.5)
    assert (found.context, found.parallel, found.threads) == (512, 3, 1)
    assert found.digest == bundle(tmp_path).manifest.digest
    exchanges = started.server.exchanges
    assert max(e.received for e in exchanges) < min(e.written[-1] for e in exchanges)
    tokens = [20 + 2 * len(e.prompt.split()) for e in exchanges]
    assert all(0.7 * 512 < count < 0.8 * 512 for count in tokens)
    assert len({e.prompt[:4] for e in exchanges}) == 3, "no two begin alike"


def test_it_is_measured_once(started: Started, home: Home, tmp_path: Path) -> None:
    first = take(bundle(tmp_path), home)
    (path,) = home.footprints.iterdir()
    assert path.name == f"{first.digest[:16]}.json"
    assert take(bundle(tmp_path), home) == first
    assert started.starts == 1
    path.write_text("{", encoding="utf-8")
    assert take(bundle(tmp_path), home).digest == first.digest
    assert started.starts == 2, "a damaged record is measured again"


def keep(of: Bundle, home: Home, **changes: Any) -> None:
    """As if it had been measured before."""
    home.footprints.mkdir(parents=True)
    record = footprint(of.manifest, **changes)
    path = home.footprints / f"{of.manifest.digest[:16]}.json"
    path.write_text(record.model_dump_json(), encoding="utf-8")


@pytest.mark.parametrize("change", [{"parallel": 2}, {"context": 1024}, {"threads": 2},
                                    {"device": "cuda"}, {"digest": "0" * 64}])  # fmt: skip
def test_a_record_of_other_settings_is_not_taken(
    started: Started, home: Home, tmp_path: Path, change: dict[str, Any]
) -> None:
    made = bundle(tmp_path)
    started.error = PlanError("it would be measured anew")
    keep(made, home, **change)
    assert not take(made, home).measured


def test_without_threads_in_the_recipe_any_number_is_the_same(
    started: Started, home: Home, tmp_path: Path
) -> None:
    made = bundle(tmp_path, serve={**SERVE, "threads": None})
    keep(made, home, threads=64)
    assert take(made, home).threads == 64
    assert started.starts == 0


def test_an_estimate_starts_nothing_and_says_so(
    started: Started, home: Home, tmp_path: Path
) -> None:
    found = take(bundle(tmp_path), home, estimate=True)
    made = bundle(tmp_path).manifest
    cache = made.quantization["kv_bytes_per_token"] * 3 * 512
    assert found.memory_bytes == made.weights_bytes + cache + 256 * MIB
    assert not found.measured and "estimate" in found.origin
    assert (found.ready_seconds, found.stop_seconds, started.starts) == (None, None, 0)
    assert not home.footprints.exists()


def test_without_a_gpu_it_is_estimated(started: Started, home: Home, tmp_path: Path) -> None:
    progress = Warnings()
    found = take(bundle(tmp_path, engine="vllm", device="cuda"), home, progress)
    assert (found.measured, found.device, started.starts) == (False, "cuda", 0)
    assert "no GPU" in progress.said[0]


def test_what_cannot_start_here_is_estimated(started: Started, home: Home, tmp_path: Path) -> None:
    started.error = PlanError("serving needs 40 GiB of memory and 2 GiB are available")
    progress = Warnings()
    assert not take(bundle(tmp_path), home, progress).measured
    assert "needs 40 GiB" in progress.said[0]


def test_no_answer_is_no_measurement(
    home: Home, tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake(Script(faults=("http_500",))) as broken:
        started.server = broken
        with pytest.raises(ServerError, match="none of 3 requests at once") as caught:
            take(bundle(tmp_path), home)
    assert "--estimate" in caught.value.hint
    assert not home.footprints.exists()


def test_time_is_bounded(
    home: Home, tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprints, "LIMIT_SECONDS", 0.2)
    with fake(Script(ttft=0.01, tpot=0.03, tokens=1000)) as slow:
        started.server = slow
        with pytest.raises(ServerError, match="within 0 s"):
            take(bundle(tmp_path), home)
