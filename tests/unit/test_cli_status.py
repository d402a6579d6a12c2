"""What `deployer status` shows of a server, and what it leaves blank."""

from __future__ import annotations

import pytest

from deployer.cli.serving import _span, _status_row
from deployer.serving import ServerRecord

RECORD = ServerRecord(
    name="demo", endpoint="http://127.0.0.1:8080", supervisor_pid=1, engine_pid=2, bundle="b",
    log="l", state="ready", server="xllamacpp", model="smollm2",
)  # fmt: skip


def test_what_was_not_measured_is_blank() -> None:
    assert _status_row(RECORD) == (
        "demo", "ready", "http://127.0.0.1:8080", "xllamacpp", "0", "", "", "", "",
    )  # fmt: skip


def test_what_was_measured_is_shown() -> None:
    seen = {
        "restarts": 2, "last_cause": "hung", "uptime_s": 90000.0, "running": 4.0, "waiting": 3.0,
        "output_tokens_per_s": 0.0, "peak_rss_bytes": 250_000_000,
    }  # fmt: skip
    assert _status_row(RECORD.model_copy(update=seen))[4:] == (
        "2, last: hung", "1 d 1 h", "4 run, 3 wait", "0.0", "250 MB peak",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3660, "1 h 1 min"), (90061, "1 d 1 h")],
)
def test_times_are_told_in_two_units(seconds: float, shown: str) -> None:
    assert _span(seconds) == shown
