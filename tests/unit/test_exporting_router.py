"""Several servers behind vllm-router: the scripts, and which flags they use."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from made_up_bundle import deployment

from deployer.errors import PlanError
from deployer.exporting import router
from deployer.toolchains.specs import SPECS

TWO = {"replicas": 2, "port": 8000}


def words(text: str) -> list[str]:
    return shlex.split(text, comments=True)


def test_every_server_has_a_name_and_a_port_and_the_router_knows_them_all() -> None:
    files = router.render(deployment(options={**TWO, "replicas": 3}))
    starts = [line.split() for line in files["start-replicas.sh"].splitlines()]
    assert [line[1:] for line in starts if line[:1] == ["start"]] == [
        ["0", "demo-q4-0-1", "8001", '"$@"'],
        ["1", "demo-q4-0-2", "8002", '"$@"'],
        ["2", "demo-q4-0-3", "8003", '"$@"'],
    ]
    started = words(files["start-router.sh"])
    at = started.index("--worker-urls")
    assert started[at + 1 : at + 4] == [f"http://127.0.0.1:{port}" for port in (8001, 8002, 8003)]
    assert started[started.index("--port") + 1] == "8000"


def test_cores_of_the_recipe_do_not_stand_against_those_of_a_replica() -> None:
    script = router.render(deployment(serve={"cores": "0-3"}, options=TWO))["start-replicas.sh"]
    assert '--set serve.api_key_file=null --set serve.cores=null "$@"\n' in script
    assert "serve.cores" not in router.render(deployment(options=TWO))["start-replicas.sh"]


def test_the_release_of_the_router_is_the_locked_one() -> None:
    lock = SPECS["vllm-router"].lock_path.read_text(encoding="utf-8")
    assert f"vllm-router=={router.RELEASE} " in lock
    assert router.RELEASE in router.render(deployment(options=TWO))["start-router.sh"]


def test_servers_on_gpus_have_gpus_of_their_own() -> None:
    made = deployment("vllm", device="cuda", serve={"vllm": {"tensor_parallel": 2}}, options=TWO)
    script = router.render(made)["start-replicas.sh"]
    assert "start 0 demo-w4a16-1 8001 0,1 " in script
    assert "start 1 demo-w4a16-2 8002 2,3 " in script
    assert "taskset" not in script


def test_a_folder_with_spaces_stays_one_word() -> None:
    script = router.render(deployment(options={**TWO, "model": "/srv/my model"}))
    assert "deployer serve '/srv/my model' --detach" in script["start-replicas.sh"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "two servers or more"),
        ({**TWO, "host": "0.0.0.0"}, "asks nobody for a key"),
        ({**TWO, "model": "pvc://claim/x"}, "cannot read pvc://"),
    ],
)
def test_what_a_router_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        router.render(deployment(options=options))
