"""The leader of a load test: who gets work, what is taken, whose clock counts."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from loadtest_samples import sample

from deployer.errors import LoadTestError, UsageError
from deployer.loadtest import driver, joining, leading
from deployer.loadtest.crew import Crew
from deployer.loadtest.leading import Address, Leader

REPORT = {"started": 500.0, "stopping": 503.0, "lag_ms_p99": 1.0, "cpu_percent_max": 2.0}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Leader:
    """A leader that does not listen yet, and waits for nobody long."""
    monkeypatch.setattr(leading, "HOLD_S", 0.05)
    monkeypatch.setattr(leading, "PARTING_S", 0.01)
    monkeypatch.setattr(leading, "SHUTDOWN_S", 0.01)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Leader(2, Address("127.0.0.1", probe.getsockname()[1]))


@pytest.fixture
def leader(alone: Leader) -> Iterator[Leader]:
    with alone:
        yield alone


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, verify=False) as client:
        yield client


def ask(http: httpx.Client, leader: Leader, name: str, after: int = 0) -> httpx.Response:
    return http.get(f"{leader.url}/job", params={"name": name, "after": after})


def test_a_job_is_given_once_there_is_one_to_as_many_as_there_shall_be(
    leader: Leader, http: httpx.Client
) -> None:
    assert ask(http, leader, "a").status_code == 204
    leader.begin({"loop": "open"}, [{"due": 0.0}], lambda _: None)
    job = ask(http, leader, "a").json()
    assert (job["number"], job["settings"], job["plan"]) == (1, {"loop": "open"}, [{"due": 0.0}])
    assert job["locust_port"] == leader.address.port + 1
    assert ask(http, leader, "a", after=1).status_code == 204, "the same job only once"
    assert [ask(http, leader, name).status_code for name in ("b", "c", "b")] == [200, 409, 200]


def test_who_waits_and_goes_away_takes_nobodys_place(leader: Leader, http: httpx.Client) -> None:
    assert [ask(http, leader, name).status_code for name in ("gone", "a", "b")] == [204] * 3
    leader.begin({}, [], lambda _: None)
    assert [ask(http, leader, name).status_code for name in ("a", "b", "gone")] == [200, 200, 409]
    leader.begin({}, [], lambda _: None)
    assert [ask(http, leader, name, after=1).status_code for name in "ab"] == [200, 200]


@pytest.mark.parametrize("number", ["x", "-1", "\u00b2", "9" * 30])
def test_numbers_that_are_none_are_no_fault(
    leader: Leader, http: httpx.Client, number: str, capfd: pytest.CaptureFixture[str]
) -> None:
    told = {"name": "a", "after": number}
    assert http.get(f"{leader.url}/job", params=told).status_code == 204
    with socket.create_connection(("127.0.0.1", leader.address.port)) as sock:
        head = f"POST /{leader.secret}/progress HTTP/1.1\r\nContent-Length: {number}\r\n\r\n"
        sock.sendall(head.encode())
        assert b" 404 " in sock.recv(100)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(("error", "shown"), [(BrokenPipeError, False), (ValueError, True)])
def test_only_a_worker_that_goes_away_is_not_shown(
    leader: Leader, error: type[Exception], shown: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        raise error
    except error:
        leader._server.handle_error(None, ("127.0.0.1", 1))
    assert ("Traceback" in capfd.readouterr().err) is shown


def test_who_does_not_know_the_secret_learns_and_changes_nothing(
    leader: Leader, http: httpx.Client
) -> None:
    leader.begin({}, [], lambda _: None)
    base = leader.url.removesuffix(leader.secret)
    for path in ("", "job", "x/job", f"{leader.secret}x/job", f"{leader.secret}/other"):
        assert http.get(base + path).status_code == 404
    assert http.post(f"{base}x/measured?name=a&age=0", content="{}").status_code == 404


def test_times_are_moved_to_the_leaders_clock(leader: Leader, http: httpx.Client, tmp_path) -> None:
    leader.begin({}, [], lambda _: None)
    for name in "ab":
        ask(http, leader, name)
        record = json.dumps(sample(sent=501.0, closed=502.0).as_json())
        body = f"{json.dumps(REPORT)}\n{record}\n"
        told = {"name": name, "age": 10.0}
        assert http.post(f"{leader.url}/measured", params=told, content=body).status_code == 200
    leader.collect(tmp_path)
    raw = driver.gather(tmp_path, origin=time.monotonic() - 10.0)
    assert len(raw.workers) == len(raw.samples) == 2
    assert [w.started for w in raw.workers] == pytest.approx([0.0, 0.0], abs=0.5)
    assert [s.sent for s in raw.samples] == pytest.approx([1.0, 1.0], abs=0.5)
    assert raw.samples[0].closed - raw.samples[0].sent == pytest.approx(1.0)


@pytest.mark.parametrize(
    "body", [b"x", b"{}", b"[]\n", b'{"started": "x"}', json.dumps(REPORT).encode() + b"\n{}\n"]
)
def test_what_is_no_report_is_refused(leader: Leader, http: httpx.Client, body: bytes) -> None:
    leader.begin({}, [], lambda _: None)
    ask(http, leader, "a")
    told = {"name": "a", "age": 1.0}
    assert http.post(f"{leader.url}/measured", params=told, content=body).status_code == 400
    assert http.post(f"{leader.url}/progress", params=told, content=body).status_code == 400


def test_progress_of_two_machines_is_told_apart(leader: Leader, http: httpx.Client) -> None:
    lines: list[str] = []
    leader.begin({}, [], lines.append)
    for name in "ab":
        line = 'progress {"pid": 7, "done": 3}'
        http.post(f"{leader.url}/progress", params={"name": name}, content=line)
    assert [json.loads(line.removeprefix("progress "))["pid"] for line in lines] == ["a", "b"]


def test_a_worker_that_never_comes_back_leaves_nothing(
    leader: Leader, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(leading, "BRING_S", 0.05)
    leader.begin({}, [], lambda _: None)
    leader.collect(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_goes_when_it_is_over(
    alone: Leader, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading, "PARTING_S", 5.0)
    found: list[object] = []
    with alone:
        joined = joining.Joined(alone.url, http)
        assert ask(http, alone, joined.name).status_code == 204
        waiting = threading.Thread(target=lambda: found.append(joined.job(after=0)))
        waiting.start()
    waiting.join(5)
    assert found == [None]


def test_a_worker_of_another_version_is_told_so(
    leader: Leader, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader.begin({}, [], lambda _: None)
    monkeypatch.setattr(joining.deployer, "__version__", "0.0.1")
    with pytest.raises(LoadTestError, match=r"the leader is deployer .*, this is 0\.0\.1"):
        joining.Joined(leader.url, http).job(after=0)


def test_a_wrong_address_is_told(leader: Leader, http: httpx.Client) -> None:
    with pytest.raises(UsageError, match="no leader's address"):
        joining.Joined("http://127.0.0.1:1", http)
    wrong = joining.Joined(leader.url + "x", http)
    with pytest.raises(LoadTestError, match="no load test is led at this address"):
        wrong.job(after=0)
    with pytest.raises(LoadTestError, match="nobody leads"):
        joining.Joined("http://127.0.0.1:1/secret", http).job(after=0)


@pytest.mark.parametrize("text", ["", "5570", "host", "host:", "host:0", "host:65535", "h:²"])
def test_an_address_to_listen_at_has_a_host_and_a_port(text: str) -> None:
    with pytest.raises(UsageError, match="is no address to listen at"):
        Address.parse(text)


def test_addresses_are_told_as_others_find_them() -> None:
    assert Address.parse("10.0.0.5:5570") == Address("10.0.0.5", 5570)
    assert Address.parse("[::1]:5570").name == "[::1]"
    assert Address.parse("0.0.0.0:5570").name == socket.gethostname()
    assert Crew(1).arguments() == []
