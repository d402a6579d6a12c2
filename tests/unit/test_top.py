"""`deployer top`: what is asked, and what is drawn of it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from deployer.cli import watching as command
from deployer.home import Home
from deployer.workflow import watching
from deployer.workflow.watched import DeploymentRow, RouteRow, ServerRow, View


def drawn(found: View) -> str:
    out = io.StringIO()
    Console(file=out, width=200, highlight=False, markup=False).print(
        *command.shown(found), sep="\n"
    )
    return out.getvalue()


def test_everything_that_was_measured_is_drawn() -> None:
    event = {"time": "2026-11-22T10:20:30.5Z", "event": "fallback_on", "route": "chat [x]"}
    routes = (RouteRow("chat", 4.5, 0.0, 0.081, 0.25, 3.0, True), RouteRow("other", waiting=0.0))
    deployment = DeploymentRow(
        "shop", "degraded", "http://127.0.0.1:8000", 3, 4000.0, 1, refused_s=0.5,
        open_streams=7.0, memory_bytes=9.1e7, cores=0.12, routes=routes,
        unfit=("q4 (chat)",), events=(event,),
    )  # fmt: skip
    server = ServerRow(
        "shop.q4.1", "ready", 90.0, 2, running=1.0, waiting=0.0, prompt_tokens_s=120.4,
        output_tokens_s=33.33, cache_used=0.5, memory_bytes=2_500_000_000, cores=1.9,
    )  # fmt: skip
    lines = drawn(View(2.0, (server,), (deployment,))).splitlines()
    assert lines[0] == (
        "shop: degraded at http://127.0.0.1:8000, generation 3, up 67 min, gateway started again 1 "
        "times, 0.5 refused with 429/s, 7 open streams, gateway 91 MB, 0.12 cores"
    )
    assert lines[1] == "unfit: q4 (chat)"
    assert lines[3].split() == ["chat", "4.5", "0", "81", "ms", "250", "ms", "3", "ON"]
    assert lines[4].split() == ["other", "0"]
    assert lines[5] == "  10:20:30 fallback_on route=chat [x]"
    assert " ".join(lines[8].split()) == ("shop.q4.1 ready 90 s 2 1 0 120 33.3 50 % 2.50 GB 1.9")
    assert lines[-1] == "rates over 2.0 s"


def test_where_nothing_runs_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    ran = CliRunner().invoke(command.top, ["--once"])
    assert ran.exit_code == 0 and "deployer serve --detach" in ran.output
    ran = CliRunner().invoke(command.top, ["--json"])
    document = json.loads(ran.output)
    assert (document["servers"], document["deployments"]) == ([], [])
    assert document["seconds"] > 0


def test_a_name_that_nothing_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no server or deployment named chat"):
        watching.look(Home(tmp_path), "chat")


def test_durations() -> None:
    values = (None, 0.0004, 0.0851, 2.44, 119.0, 720.0, 11_160.0, 200_000.0)
    told = ["", "0 ms", "85 ms", "2.44 s", "119 s", "12 min", "3.1 h", "2.3 d"]
    assert [command.seconds(value) for value in values] == told


def test_numbers() -> None:
    values = (None, 0.0, 3.0, 0.1234, 1234.5)
    assert [command.number(value) for value in values] == ["", "0", "3", "0.123", "1234"]


def test_the_last_events_are_read_from_the_end_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    lines = [
        json.dumps({"event": "keys_applied", "number": n, "pad": "x" * 90}) for n in range(999)
    ]
    log.write_text("\n".join([*lines, "no json", '{"other": 1}', "[]", ""]), encoding="utf-8")
    found = watching.last_events(log, 3)
    assert [event["number"] for event in found] == [996, 997, 998]
    assert watching.last_events(tmp_path / "none") == []


def test_this_process_has_memory_and_a_gone_one_has_not() -> None:
    own = watching.usage(os.getpid())
    assert own is not None and own.memory_bytes > 1 << 20
    assert watching.usage(2**22 + 1) is None
