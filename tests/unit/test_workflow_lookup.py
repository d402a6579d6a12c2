"""Which deployment or server a name means. Records are made up, and nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from deployment_samples import record

from deployer.deployments import DeploymentFolder
from deployer.errors import UsageError
from deployer.home import Home
from deployer.progress import SILENT
from deployer.serving.state import ServerFolder, ServerRecord
from deployer.workflow import lookup


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def deployed(home: Home, **changed: object) -> None:
    folder = DeploymentFolder.of(home, "chat")
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.write(record(**changed))


def served(home: Home, name: str, state: str = "ready") -> None:
    folder = ServerFolder.of(home, name)
    folder.root.mkdir(parents=True, exist_ok=True)
    mine = record()
    found = ServerRecord(
        name=name, endpoint="e", supervisor_pid=mine.supervisor_pid, engine_pid=None, bundle="b",
        log="l", state=state, server="s", model="m", marks=mine.marks,
    )  # fmt: skip
    folder.write(found)


def test_nothing_runs(home: Home) -> None:
    assert lookup.status(home, None) == lookup.Records()
    with pytest.raises(UsageError, match="no server runs"):
        lookup.only_running(home)
    for ask in (lookup.status, lambda home, name: lookup.stop(name, home, SILENT)):
        with pytest.raises(UsageError, match="there is no server named chat"):
            ask(home, "chat")


def test_a_deployments_servers_are_part_of_it(home: Home) -> None:
    deployed(home)
    served(home, "chat.q4.1")
    assert lookup.only_running(home) == "chat"
    found = lookup.status(home, None)
    assert ([each.name for each in found.servers], len(found.deployments)) == (["chat.q4.1"], 1)
    assert [each.name for each in lookup.status(home, "chat.q4.1").servers] == ["chat.q4.1"]
    with pytest.raises(UsageError, match=r"chat\.q4\.1 is a server of the deployment chat"):
        lookup.stop("chat.q4.1", home, SILENT)
    served(home, "other")
    with pytest.raises(UsageError, match="2 servers and deployments run: chat, other"):
        lookup.only_running(home)


def test_one_name_for_both_means_the_one_that_runs(home: Home) -> None:
    deployed(home, state="failed")
    assert lookup.is_deployment_named("chat", home)
    served(home, "chat")
    assert not lookup.is_deployment_named("chat", home)
    deployed(home)
    assert lookup.is_deployment_named("chat", home)
    assert not lookup.is_deployment_named("../chat", home)


def test_a_lost_deployment_is_stopped_with_its_lost_servers(home: Home) -> None:
    deployed(home, marks={})
    served(home, "chat.q4.1", "failed")
    stopped = lookup.stop("chat", home, SILENT)
    assert [each.state for each in stopped.deployments] == ["stopped"]
    assert lookup.status(home, None) == lookup.Records()
