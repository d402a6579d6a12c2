"""An hour of steady streaming load on a deployment: nothing grows, nothing fails.

Two real llama.cpp servers with the demo model behind the gateway: one runs from start to end, the
other is exchanged by a reload every ten minutes. DEPLOYER_SOAK_SECONDS sets the length,
DEPLOYER_SOAK_FOLDER where the record and its picture are written besides docs/measured.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import home_beside
from deployed import SMALL, Deployed, deployed, document
from measured import record
from soak_plot import draw
from soaking import Watcher, growth, minutes, series
from streaming_load import Load, percentile

from deployer.artifacts import Bundle
from deployer.home import Home

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]
SECONDS = float(os.environ.get("DEPLOYER_SOAK_SECONDS", "3600"))
RELOADS = 6
EVERY = 15.0
CACHE = ("--cache-ram", "64")
"""llama.cpp keeps old prompts in up to 8 GiB by itself, which would look like growth."""
USERS, TOKENS, PAUSE = 2, 16, 1.0
"""Two users who read for a second between two short answers: less than half a core."""
GROWTH = {"gateway": 12.0, "deployment": 6.0, "supervisor of steady": 6.0, "engine of steady": 40.0}
"""MiB an hour that a process may grow after the first 15 % of the time."""
FILES = 8
"""How many more files the gateway may hold at the end than after the warm-up."""


def wanted(bundle: Bundle, turn: int) -> dict[str, Any]:
    def server(**changes: Any) -> dict[str, Any]:
        settings = {**SMALL, "extra_args": list(CACHE), **changes}
        return {"bundle": str(bundle.root), "serve": settings}

    servers = {"steady": server(), "swapped": server(context=512 + 64 * (turn % 2))}
    return document("soak", servers, [{"model": "chat", "to": {"steady": 1, "swapped": 1}}])


def test_nothing_grows_and_nothing_fails(home: Home, demo_bundle: Bundle, tmp_path: Path) -> None:
    own = home_beside(home, tmp_path / "home", "store", "bundles")
    folder = Path(os.environ.get("DEPLOYER_SOAK_FOLDER", str(tmp_path)))
    folder.mkdir(parents=True, exist_ok=True)
    with deployed(own, tmp_path, wanted(demo_bundle, 0)) as running:
        watcher = Watcher(running)
        with Load(running.url, "chat", USERS, TOKENS, pause=PAUSE) as load:
            reloads = keep_on(running, demo_bundle, watcher, load, folder)
            load.end()
    soak = tell(watcher, load, reloads)
    (folder / "soak.json").write_text(json.dumps(soak), encoding="utf-8")
    (folder / "soak.svg").write_text(draw(soak), encoding="utf-8")
    record("soak", soak["summary"])
    judge(soak, watcher)


def keep_on(
    running: Deployed, bundle: Bundle, watcher: Watcher, load: Load, folder: Path
) -> list[float]:
    """Watch until the time is over, and reload now and then; gives when, in seconds."""
    reloads: list[float] = []
    at = 0.0
    while at < SECONDS:
        at = watcher.look().at
        if at > SECONDS * (len(reloads) + 1) / (RELOADS + 1) and len(reloads) < RELOADS:
            reloads.append(round(at, 1))
            running.reload(wanted(bundle, len(reloads)))
        rows = {"at": at, "ends": load.ends(), "moment": series(watcher.moments[-1:])}
        (folder / "soak-progress.json").write_text(json.dumps(rows), encoding="utf-8")
        time.sleep(max(0.0, min(EVERY, SECONDS / 20) - (time.monotonic() - watcher.started - at)))
    return reloads


def tell(watcher: Watcher, load: Load, reloads: list[float]) -> dict[str, Any]:
    """All that was seen, and a summary for the documents."""
    firsts = [(r.first - r.started) * 1000 for r in load.asked if r.first is not None]
    last = watcher.moments[-1]
    summary = {
        "seconds": round(last.at),
        "requests": len(load.asked),
        "ends": load.ends(),
        "reloads": len(reloads),
        "growth_mib_per_hour": {
            name: growth(watcher.moments, name) for name in GROWTH if name in last.processes
        },
        "allowed_growth_mib_per_hour": GROWTH,
        "pss_mib_at_the_end": {name: seen.pss_mib for name, seen in sorted(last.processes.items())},
        "files_of_the_gateway": [files(watcher, 0.15), files(watcher, 1.0)],
        "threads_of_the_gateway": last.processes["gateway"].threads,
        "ttft_p50_ms": round(percentile(firsts, 0.5) or 0.0, 1),
        "ttft_p95_ms": round(percentile(firsts, 0.95) or 0.0, 1),
        "others_p50_cores": percentile([moment.others for moment in watcher.moments], 0.5),
    }
    title = f"{summary['requests']} streamed requests in {last.at / 60:.0f} minutes; "
    title += f"dashed lines: {len(reloads)} reloads"
    return {
        "title": title,
        "summary": summary,
        "moments": series(watcher.moments),
        "minutes": minutes(load.asked, watcher.started),
        "reloads": reloads,
    }


def files(watcher: Watcher, share: float) -> int:
    """Open files of the gateway after a share of the time."""
    at = min(len(watcher.moments) - 1, int(share * len(watcher.moments)))
    return watcher.moments[at].processes["gateway"].files


def judge(soak: dict[str, Any], watcher: Watcher) -> None:
    summary = soak["summary"]
    assert set(summary["ends"]) == {"done"}, summary["ends"]
    gateways = {moment.processes["gateway"].pid for moment in watcher.moments}
    assert len(gateways) == 1, "the gateway was started again"
    early, late = summary["files_of_the_gateway"]
    assert late <= early + FILES
    if SECONDS >= 1800:  # less time tells little of growth
        grown = summary["growth_mib_per_hour"]
        assert all(grown[name] <= GROWTH[name] for name in GROWTH), grown
