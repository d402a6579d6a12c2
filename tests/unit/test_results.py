import json

import pytest
from loadtest_samples import closed_loop, result
from pydantic import ValidationError

from deployer import results
from deployer.loadtest import storage
from deployer.results import Gate, LoadTestResult


def test_the_document_has_the_agreed_parts():
    document = result(closed_loop()).as_json()
    assert document["schema_version"] == 1
    assert set(document) >= {
        "run", "server", "host", "workload", "stages", "client", "trials", "gates",
    }  # fmt: skip
    latencies = document["stages"][0]["latency_ms"]
    assert set(latencies) == {
        "ttft", "ttfo", "tpot", "icl", "e2e", "e2e_from_schedule", "queue", "connect",
    }  # fmt: skip
    assert set(latencies["ttft"]) == {"n", "mean", "p50", "p90", "p95", "p99"}
    assert latencies["queue"] is None, "a closed loop has no schedule"
    assert document["gates"][0]["pass"] is True
    assert set(document["trials"]) == {"n", "mean", "sd", "cv", "ci95"}


def test_a_result_is_frozen_and_reads_back(tmp_path):
    samples = closed_loop(users=2, seconds=8.0)
    before = result(samples)
    storage.write(tmp_path, before, samples, {"page.html": lambda r, s: f"{r.run.id} {len(s)}"})
    assert results.read_result(tmp_path) == before
    assert results.read_samples(tmp_path) == tuple(samples)
    assert (tmp_path / "page.html").read_text() == f"{before.run.id} {len(samples)}"
    with pytest.raises(ValidationError):
        before.schema_version = 2


def test_fields_of_a_later_version_are_left_out():
    text = json.dumps({**result(closed_loop(users=1)).as_json(), "later": 1})
    assert not hasattr(LoadTestResult.model_validate_json(text), "later")


def test_csv_has_a_row_for_each_request(tmp_path):
    samples = closed_loop(users=2, seconds=8.0, errors=1)
    rows = storage.as_csv(samples).splitlines()
    assert len(rows) == len(samples) + 1
    assert rows[0].startswith("id,phase,due,sent,first,last") and "ttft_ms" in rows[0]


def test_too_many_errors_needs_a_measured_rate():
    base = result(closed_loop(users=1))
    for value, expected in ((0.1, True), (None, False)):
        gates = (Gate(expression="error_rate <= 0", value=value, passed=False),)
        assert base.model_copy(update={"gates": gates}).too_many_errors is expected
