"""What clients lose when servers are swapped, and when engines die, under streaming load.

Real llama.cpp servers with the demo model behind the real gateway. DEPLOYER_DRAIN_REQUESTS and
DEPLOYER_ENGINE_KILLS make a run shorter than the targets of 1,000 requests and 100 kills; with
DEPLOYER_SEED several short runs kill at other times.
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command_line import gone, home_beside
from deployed import SMALL, Deployed, deployed, document
from measured import record_run
from streaming_load import SILENT, Asked, Load

from deployer.artifacts import Bundle
from deployer.deployments import DeploymentSpec
from deployer.home import Home
from deployer.machine import usable_cores
from deployer.serving.state import ServerRecord

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]
REQUESTS = int(os.environ.get("DEPLOYER_DRAIN_REQUESTS", "1000"))
KILLS = int(os.environ.get("DEPLOYER_ENGINE_KILLS", "100"))
BACK_SECONDS = 30.0


@pytest.fixture
def own(home: Home, tmp_path: Path) -> Home:
    return home_beside(home, tmp_path / "home", "store", "bundles")


def of(bundle: Bundle, **changes: Any) -> dict[str, Any]:
    return {"bundle": str(bundle.root), "serve": {**SMALL, **changes}}


def route(*names: str) -> dict[str, Any]:
    return {"model": "chat", "to": dict.fromkeys(names, 1)}


# Swaps


def test_no_request_is_lost_while_servers_are_swapped(
    own: Home, demo_bundle: Bundle, tmp_path: Path
) -> None:
    """One server is exchanged for another again and again while all requests stream through."""

    def wanted(turn: int) -> dict[str, Any]:
        server = of(demo_bundle, context=512 + 64 * (turn % 2), parallel=4)
        return document("swap", {"one": server}, [route("one")])

    with deployed(own, tmp_path, wanted(0)) as running:
        started = time.monotonic()
        swaps = 0
        with Load(running.url, "chat", users=6, tokens=6, most=REQUESTS) as load:
            while load.running:
                swaps += 1
                running.reload(wanted(swaps))
            load.join()
        took = time.monotonic() - started
    ends = load.ends()
    lost = [request for request in load.asked if not request.good]
    print(f"\n{len(load.asked)} requests, {swaps} swaps in {took:.0f} s: {ends}")
    record_run(
        "drain",
        {"requests": len(load.asked), "swaps": swaps, "lost": len(lost), "seconds": round(took),
         "engine": "llama.cpp", "ends": ends},
    )  # fmt: skip
    assert not lost, [(request.end, request.told) for request in lost[:5]]
    assert len(load.asked) == REQUESTS
    assert swaps >= 2


# Kills


def at_ease(spec: DeploymentSpec) -> DeploymentSpec:
    """The same, with the pause before every restart as short as after a long good run."""
    servers = {
        name: planned.model_copy(
            update={
                "spec": dataclasses.replace(
                    planned.spec, patience=dataclasses.replace(planned.spec.patience, good_run=0.0)
                )
            }
        )
        for name, planned in spec.servers.items()
    }
    return spec.model_copy(update={"servers": servers})


@dataclasses.dataclass
class Kill:
    """One SIGKILL of an engine; `back` is when its server was ready again (`time.monotonic`)."""

    server: str
    pid: int
    at: float
    back: float | None = None


def ready(running: Deployed, name: str) -> ServerRecord | None:
    found = running.server(name)
    return found if found is not None and found.state == "ready" and found.engine_pid else None


def kill(running: Deployed, name: str) -> Kill:
    """SIGKILL the engine of a server that is ready, and see that it is gone."""
    found = ready(running, name)
    assert found is not None and found.engine_pid is not None
    os.kill(found.engine_pid, signal.SIGKILL)
    moment = time.monotonic()
    assert gone(found.engine_pid)
    return Kill(name, found.engine_pid, moment)


def await_ready(running: Deployed, name: str, after: Kill | None) -> None:
    """Wait until a server is ready, with another engine than the one that was killed."""
    deadline = time.monotonic() + BACK_SECONDS
    while (found := ready(running, name)) is None or (after and found.engine_pid == after.pid):
        assert time.monotonic() < deadline, f"{name} did not come back: {running.server(name)}"
        time.sleep(0.02)
    if after is not None and after.back is None:
        after.back = time.monotonic()


def explained(request: Asked, kills: list[Kill]) -> bool:
    """Whether a request was at an engine when that was killed."""
    return any(
        request.server in ("", kill.server) and request.under_way(kill.at, 0.1) for kill in kills
    )


def test_a_killed_engine_loses_only_what_it_was_answering(
    own: Home, demo_bundle: Bundle, tmp_path: Path
) -> None:
    """Engines are killed at random times; every client sees an end mark or an error."""
    servers = {name: of(demo_bundle) for name in ("one", "two")}
    wanted = document("kills", servers, [route("one", "two")])
    rng = random.Random(int(os.environ.get("DEPLOYER_SEED", "7")))
    kills: list[Kill] = []
    last: dict[str, Kill | None] = {"one": None, "two": None}
    with (
        deployed(own, tmp_path, wanted, at_ease) as running,
        Load(running.url, "chat", users=4, tokens=24) as load,
    ):
        while len(kills) < KILLS:
            name = rng.choice(("one", "two"))
            await_ready(running, name, last[name])
            time.sleep(rng.uniform(0.0, 1.0))
            kills.append(kill(running, name))
            last[name] = kills[-1]
        for name, done in last.items():
            await_ready(running, name, done)
        time.sleep(1.0)
        load.end()
    report(load, kills)


def report(load: Load, kills: list[Kill]) -> None:
    """Record what happened, and demand what must hold."""
    lost = [request for request in load.asked if not request.good]
    silent = [request for request in lost if request.end in SILENT]
    unexplained = [request for request in lost if not explained(request, kills)]
    back = [kill.back - kill.at for kill in kills if kill.back is not None]
    figures = {
        "kills": len(kills), "requests": len(load.asked), "ends": load.ends(), "lost": len(lost),
        "silent": len(silent), "lost_elsewhere": len(unexplained), "engine": "llama.cpp",
        "cores": usable_cores(),
        "refusals": Counter(f"{r.status} {r.told[:90]}" for r in lost if r.end == "refused"),
        "recovery_s": [round(seconds, 2) for seconds in back],
    }  # fmt: skip
    print(f"\n{figures}")
    record_run("engine_kills", figures)
    assert not silent, silent[:5]
    assert not unexplained, [(request.end, request.status, request.told) for request in unexplained]
    assert len(lost) <= 4 * len(kills)
    assert len(back) == len(kills)
