"""What deployments leave on the disk and tell: specs, records, the gateway's table, words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from deployment_samples import Q4, deployment_spec, planned, record

from deployer import deployments
from deployer.deployments import DeploymentFolder, DeploymentSpec
from deployer.deployments.fleet import clear_folders, folders
from deployer.deployments.pauses import Pauses
from deployer.deployments.state import DeployedRecord, Reload
from deployer.deployments.table import Standing, make_table
from deployer.deployments.words import changes
from deployer.errors import ServerError, UsageError
from deployer.gateway.routing import read_table
from deployer.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def folder(home: Home, name: str = "chat") -> DeploymentFolder:
    found = DeploymentFolder.of(home, name)
    found.root.mkdir(parents=True, exist_ok=True)
    return found


def test_a_spec_comes_back_as_it_was_written(tmp_path: Path) -> None:
    spec = deployment_spec(3, q4="chat.q4.1", q8="chat.q8.3")
    spec.write(tmp_path / "spec.json")
    assert DeploymentSpec.read(tmp_path / "spec.json") == spec
    assert set(spec.instances) == {"chat.q4.1", "chat.q8.3"}


def test_a_record_of_a_live_supervisor_and_of_one_that_was_killed(home: Home) -> None:
    mine = folder(home)
    assert mine.current() is None
    mine.write(record(ready_at=0.0))
    found = mine.current()
    assert found is not None
    assert found.state == "ready"
    assert found.uptime_s is not None
    assert "marks" not in found.as_json()
    mine.write(record(marks={"supervisor": "another process"}, gateway_pid=4))
    lost = mine.current()
    assert lost is not None
    assert (lost.state, lost.gateway_pid) == ("lost", None)
    mine.state_file.write_text("{", encoding="utf-8")
    assert mine.current() is None


def test_status_lists_what_was_not_stopped(home: Home) -> None:
    assert deployments.status(home) == []
    folder(home).write(record())
    folder(home, "old").write(record(name="old", state="stopped"))
    assert [each.name for each in deployments.status(home)] == ["chat"]
    with pytest.raises(UsageError, match="no deployment named other") as caught:
        deployments.status(home, "other")
    assert caught.value.hint == "There are: chat."
    with pytest.raises(UsageError, match="cannot be the name of a deployment"):
        deployments.status(home, "../chat")


def test_a_lost_deployment_is_cleared_by_stop(home: Home) -> None:
    folder(home).write(record(marks={}))
    assert deployments.stop(home, "chat").state == "stopped"
    assert deployments.status(home) == []
    with pytest.raises(UsageError, match="no deployment named chat"):
        deployments.stop(home, "chat")


def test_only_servers_of_a_running_deployment_belong_to_it(home: Home) -> None:
    folder(home).write(record())
    assert deployments.deployment_of(home, "chat.q4.12") == "chat"
    for other in ("chat", "chat.q4", "chat.q4.x", "chats.q4.1"):
        assert deployments.deployment_of(home, other) is None
    folder(home).write(record(state="stopped"))
    assert deployments.deployment_of(home, "chat.q4.12") is None


def test_a_reload_needs_a_deployment_that_serves_and_comes_alone(home: Home) -> None:
    mine = folder(home)
    mine.write(record(state="starting"))
    with pytest.raises(UsageError, match="chat is starting; only a deployment that serves"):
        deployments.reloading(home, "chat").__enter__()
    mine.write(record())
    deployment_spec(1).write(mine.applied_file)
    deployment_spec(1).write(mine.spec_file)
    with deployments.reloading(home, "chat") as runs:
        assert runs.generation == 1
        with pytest.raises(ServerError, match="chat is being reloaded"):
            deployments.reloading(home, "chat").__enter__()
    deployment_spec(2).write(mine.spec_file)  # of a command that was killed since
    with pytest.raises(ServerError, match="chat is being reloaded"):
        deployments.reloading(home, "chat").__enter__()
    mine.write(record(reload=Reload(generation=2, state="failed")))
    with deployments.reloading(home, "chat") as runs:
        assert runs.generation == 2  # the next one is 3, though 1 runs


def test_folders_of_servers_that_are_no_more_are_deleted(home: Home) -> None:
    for name in ("chat.q4.1", "chat.q4.2", "chat.q8.1", "chats.q4.1", "chat.q4"):
        (home.servers / name).mkdir(parents=True)
    assert [each.root.name for each in folders(home, "chat", "q4")] == ["chat.q4.1", "chat.q4.2"]
    clear_folders(home, "chat")
    assert sorted(path.name for path in home.servers.iterdir()) == ["chat.q4", "chats.q4.1"]


def test_the_table_says_what_the_gateway_must_know(tmp_path: Path) -> None:
    spec = deployment_spec(2)
    one = Standing("q4", planned(), "ready", restarts=1)
    old = replace(one, planned=planned("chat.q4.0"), retiring=True)
    table = make_table(spec, 8123, [old, one])
    (tmp_path / "table.json").write_text(table.model_dump_json(), encoding="utf-8")
    assert read_table(tmp_path / "table.json") == table
    assert (table.deployment, table.generation, table.gateway.port) == ("chat", 2, 8123)
    found = table.upstream("q4")
    assert found is not None
    assert (found.instance, found.slots, found.context, found.model, found.restarts) == (
        "chat.q4.1", 4, 512, "smollm2-q4_0", 1,
    )  # fmt: skip


def test_what_changed_is_told_in_words() -> None:
    before = record(servers={}, state="starting")
    starting = Q4.model_copy(update={"state": "starting"})
    assert changes(before, record(servers={"q4": starting})) == ["q4 starts (chat.q4.1)"]
    ready = Q4.model_copy(update={"ready_seconds": 2.34})
    assert changes(record(servers={"q4": starting}), record(servers={"q4": ready})) == [
        "q4 is ready after 2.3 s (chat.q4.1)"
    ]
    failed = Q4.model_copy(update={"state": "failed", "error": {"message": "no memory\nx"}})
    told = changes(record(), record(servers={"q4": failed}, gateway_restarts=1))
    assert told == ["q4 is failed: no memory (chat.q4.1)", "the gateway is started again"]


def test_a_swap_is_told_in_words() -> None:
    new = DeployedRecord(instance="chat.q4.2", state="starting", endpoint="e", bundle="b")
    under_way = record(reload=Reload(generation=2, state="under way", starting={"q4": new}))
    assert changes(record(), under_way) == ["q4 starts (chat.q4.2)"]
    ready = new.model_copy(update={"state": "ready"})
    done = record(servers={"q4": ready}, retiring=("chat.q4.1",))
    assert changes(under_way, done) == [
        "q4 is ready (chat.q4.2)", "chat.q4.1 gets nothing new and finishes what it has",
    ]  # fmt: skip
    assert changes(done, record(servers={"q4": ready})) == ["chat.q4.1 has ended"]


def test_pauses_grow_to_a_bound_and_are_short_again_after_a_good_run() -> None:
    pauses = Pauses(first=1.0, longest=5.0, good=60.0)
    assert [pauses.after(0.1) for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert pauses.after(61.0) == 1.0
