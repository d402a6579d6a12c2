"""`deployer tasks` without a server of ours: what is refused, what is shown and stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployer import tasks
from deployer.errors import UsageError
from deployer.home import Home
from deployer.progress import SILENT
from deployer.recipe import Serve
from deployer.tasks.results import Item, TaskResult
from deployer.workflow.tasks import Asked, TasksOutcome, alone, run_tasks


def result(*scores: float) -> TaskResult:
    items = tuple(Item(str(number), score) for number, score in enumerate(scores))
    return TaskResult.of("demo", "pass@1", items, {}, 1.0)


def test_a_bundle_or_an_endpoint_but_not_both(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not both"):
        run_tasks("b", None, ("instructions",), 1, Home(tmp_path), SILENT, endpoint="http://x:1")
    with pytest.raises(UsageError, match="no bundle 'b'"):
        run_tasks("b", None, ("instructions",), 1, Home(tmp_path), SILENT)


def test_a_bundle_is_served_for_one_client_on_the_loopback() -> None:
    served = alone(Serve(host="0.0.0.0", port=8080, context=512, parallel=8, api_key_file="key"))
    assert (served.host, served.port, served.parallel) == ("127.0.0.1", 0, 1)
    assert (served.context, served.api_key_file) == (2048, None)
    assert alone(Serve(context=4096)).context == 4096


def test_the_table_tells_of_scores_recovery_and_what_to_beware_of(tmp_path: Path) -> None:
    after, before = result(1.0, 0.0), result(1.0, 1.0)
    kept = tasks.recovery(after, before)
    outcome = TasksOutcome(Asked({}, (after,)), Asked({}, (before,)), (kept,), tmp_path)
    columns, (row,) = outcome.table
    assert len(columns) == len(row) == 7
    assert row[:4] == ["demo", "pass@1", "2", "50.0 % (9.5 to 90.5)"]
    assert row[5].startswith("50.0 % (") and row[6] == "0 / 1"
    assert "only 2 items" in outcome.describe()[0]
    assert json.loads(json.dumps(outcome.as_json()))["recovery"][0]["value"] == 0.5
    alone_columns, (short,) = TasksOutcome(Asked({}, (after,)), None, (), tmp_path).table
    assert len(alone_columns) == len(short) == 4
