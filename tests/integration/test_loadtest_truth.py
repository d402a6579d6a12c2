"""The load test against a server that writes down what it truly did, at 1, 32 and 256 streams.

The timings need a machine with nothing else to do, so these tests are not part of the gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_sse_server import FAULTS, FakeServer, Script, serve

from deployer import loadtest, results
from deployer.loadtest import driver
from deployer.metrics import MEASURED, Sample, percentile, tpot
from deployer.recipe import LoadTest

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(180)]

TOLERANCE_MS = 3.0
STREAMS = (1, 32, 256)
PACE = 0.05
"""20 chunks a second and stream."""
SCRIPT = Script(ttft=0.2, tpot=PACE / 2, tokens=43, first=3, each=2, reasoning=5)
"""A role chunk, three tokens in the first chunk, two in each other one, reasoning first."""
CLASSES = {
    None: None, "http_400": "http_4xx", "http_429": "http_429", "http_500": "http_5xx",
    "sse_error": "sse_error", "truncated": "truncated", "reset": "truncated", "drop": "connect",
    "empty": "empty",
}  # fmt: skip
"""What the server does wrong -> the class it belongs to."""


@pytest.fixture
def origins(monkeypatch):
    """The moments of the monotonic clock from which the samples' times count, as they come."""
    seen: list[float] = []
    gather = driver.gather

    def gathered(*given):
        raw = gather(*given)
        seen.append(raw.origin)
        return raw

    monkeypatch.setattr(driver, "gather", gathered)
    return seen


def measure(server: FakeServer, streams: int, folder: Path):
    workload = LoadTest(profile="concurrent", users=streams, duration=8, warmup=4, output_tokens=43)
    made = loadtest.run(server.url, workload, folder)
    samples = results.read_samples(loadtest.folder_of(folder, made))
    return made, [s for s in samples if s.phase == MEASURED]


def errors_ms(
    samples: Sequence[Sample], server: FakeServer, origin: float
) -> dict[str, list[float]]:
    """How far each request's figures are from the truth, in milliseconds.

    Client and server stamp with the same clock. The truth of a TTFT is from the moment the request
    was sent until the first token was written, whenever the server got round to reading it.
    """
    found: dict[str, list[float]] = {"ttft": [], "tpot": [], "e2e": []}
    for s in samples:
        truth = server.of(s.prompt)
        written = [moment - origin for moment in truth.written]
        pace = (written[-1] - written[0]) / (truth.tokens - server.script.first)
        found["ttft"].append(abs(s.first - written[0]) * 1000)
        found["e2e"].append(abs(s.last - written[-1]) * 1000)
        found["tpot"].append(abs(tpot(s) - pace) * 1000)
    return found


def assert_true(made, samples, server, origin: float, label: str) -> None:
    found = errors_ms(samples, server, origin)
    for name, values in found.items():
        median, high = (percentile(values, p) for p in (50, 95))
        print(f"\n{label}: error of {name} median {median:.3f} ms, p95 {high:.3f} ms", end="")
    print(f"\n{label}: CPU {made.client.cpu_percent_max} %, lag p99 {made.client.lag_ms_p99} ms")
    assert made.client.valid, made.client.problems
    for name, values in found.items():
        assert percentile(values, 50) < TOLERANCE_MS, name
        assert percentile(values, 95) < TOLERANCE_MS, name


@pytest.mark.parametrize("streams", STREAMS)
def test_times_are_within_three_milliseconds_of_the_truth(streams, tmp_path, origins):
    with serve(SCRIPT) as server:
        made, samples = measure(server, streams, tmp_path)
    assert all(s.ok for s in samples) and len(samples) >= 3 * streams
    assert {s.output_tokens for s in samples} == {43} and {s.n_first for s in samples} == {3}
    assert all(s.first_output > s.first for s in samples), "reasoning is no output"
    assert_true(made, samples, server, origins[0], f"{streams} streams")


@pytest.mark.parametrize("streams", STREAMS)
def test_a_server_that_accepts_slowly_is_seen_as_it_is(streams, tmp_path, origins):
    """What a connection waits until it is read from is part of the TTFT."""
    with serve(Script(ttft=0.4, accept=0.3, tpot=PACE, tokens=21)) as server:
        made, samples = measure(server, streams, tmp_path)
    assert all(s.ok for s in samples)
    assert made.stages[0].latency_ms.ttft.p50 >= 400
    assert_true(made, samples, server, origins[0], f"{streams} streams, slow accept")


@pytest.mark.parametrize("streams", STREAMS)
def test_every_error_is_in_its_class(streams, tmp_path):
    faults = (None, *(fault for fault in FAULTS if fault != "hang"))
    with serve(Script(ttft=0.1, tpot=PACE / 2, tokens=20, faults=faults)) as server:
        made, samples = measure(server, streams, tmp_path)
    seen = {(server.of(s.prompt).fault, s.error) for s in samples}
    assert seen == set(CLASSES.items())
    assert set(made.stages[0].requests.errors) == set(CLASSES.values()) - {None}
    assert made.stages[0].latency_ms.ttft.n == made.stages[0].requests.ok > 0
