"""Look at the servers and deployments that run, for `deployer top`.

Each look asks every server and every gateway for its /metrics, all at the same time and with a
short patience, and the system for memory and processor time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

from deployer import deployments, serving
from deployer.deployments import DeploymentRecord
from deployer.engine_metrics import EngineMetrics, read_engine_metrics
from deployer.errors import UsageError
from deployer.gateway.exposition import samples
from deployer.home import Home
from deployer.serving import ServerRecord
from deployer.serving.spec import Spec
from deployer.serving.state import ALIVE, ServerFolder
from deployer.workflow.watched import Look, Page, SeenDeployment, SeenServer, Usage

ASK_SECONDS = 2.0
ASKED_AT_ONCE = 16
EVENTS = 5
"""Events that are shown of a deployment, the last ones."""
_TAIL_BYTES = 16_384
_OWN = ("deployer_", "process_")
"""Beginnings of the names that are read of a gateway's page; the engines' are asked themselves."""


def look(home: Home, name: str | None = None) -> Look:
    """All that runs or failed, or what is called `name`: a server, or a deployment with its own.

    Raises UsageError where nothing is called so.
    """
    servers, deployed = serving.status(home), deployments.status(home)
    if name is not None:
        servers, deployed = _called(name, servers, deployed)
    at = time.monotonic()
    with ThreadPoolExecutor(max_workers=ASKED_AT_ONCE) as pool:
        seen_servers = pool.map(lambda record: _see_server(home, record), servers)
        seen_deployments = pool.map(_see_deployment, deployed)
        return Look(at, tuple(seen_servers), tuple(seen_deployments))


def _called(
    name: str, servers: list[ServerRecord], deployed: list[DeploymentRecord]
) -> tuple[list[ServerRecord], list[DeploymentRecord]]:
    chosen = [record for record in deployed if record.name == name]
    names = {name} | {one.instance for record in chosen for one in record.servers.values()}
    names |= {instance for record in chosen for instance in record.retiring}
    wanted = [record for record in servers if record.name in names]
    if not chosen and not wanted:
        known = [record.name for record in deployed] + [record.name for record in servers]
        hint = f"There are: {', '.join(known)}." if known else "Start one: deployer serve --detach"
        raise UsageError(f"there is no server or deployment named {name}", hint)
    return wanted, chosen


def _see_server(home: Home, record: ServerRecord) -> SeenServer:
    runs = record.state in ALIVE and record.engine_pid is not None
    return SeenServer(
        name=record.name,
        state=record.state,
        endpoint=record.endpoint,
        uptime_s=record.uptime_s,
        restarts=record.restarts,
        metrics=_engine_metrics(home, record) if runs else None,
        usage=usage(record.engine_pid) if runs and record.engine_pid is not None else None,
    )


def _engine_metrics(home: Home, record: ServerRecord) -> EngineMetrics | None:
    """What the engine tells of itself, None where it tells nothing."""
    path, headers = _access(ServerFolder.of(home, record.name))
    if path is None:
        return None
    text, _ = _page(f"{record.endpoint}{path}", headers)
    if text is None:  # the supervisor has its key, and asks it every few seconds
        return EngineMetrics(running=record.running, waiting=record.waiting)
    return read_engine_metrics(text)


def _access(folder: ServerFolder) -> tuple[str | None, dict[str, str]]:
    """The path of a server's metrics, and the headers with its key."""
    try:
        spec = Spec.read(folder.spec_file)
        key = Path(spec.key_file).read_text(encoding="utf-8") if spec.key_file else ""
    except (OSError, ValueError, KeyError, TypeError):
        return "/metrics", {}
    lines = (line.strip() for line in key.splitlines())
    first = next((line for line in lines if line and not line.startswith("#")), None)
    return spec.metrics, {"Authorization": f"Bearer {first}"} if first else {}


def _page(url: str, headers: dict[str, str]) -> tuple[str | None, str]:
    """(a page's text, why there is none)."""
    # Read on this machine, whatever name its certificate has.
    try:
        answer = httpx.get(url, headers=headers, timeout=ASK_SECONDS, verify=False, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return None, f"/metrics does not answer ({type(error).__name__})"
    if answer.status_code == 401:
        return None, "/metrics wants a key from this address"
    if answer.status_code != 200:
        return None, f"/metrics answers with {answer.status_code}"
    return answer.text, ""


def usage(pid: int) -> Usage | None:
    """What a process and those it started take; None once it is gone."""
    memory, seconds = 0, 0.0
    try:
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            with member.oneshot():
                memory += member.memory_info().rss
                times = member.cpu_times()
                seconds += times.user + times.system
    except psutil.Error:
        return Usage(memory, seconds) if memory else None
    return Usage(memory, seconds)


def _see_deployment(record: DeploymentRecord) -> SeenDeployment:
    page, note = None, ""
    if record.gateway_pid is not None:
        text, note = _page(f"{record.endpoint}/metrics", {})
        if text is not None:
            page = Page.of(one for prefix in _OWN for one in samples(text, prefix))
    return SeenDeployment(
        name=record.name,
        state=record.state,
        endpoint=record.endpoint,
        generation=record.generation,
        uptime_s=record.uptime_s,
        gateway_restarts=record.gateway_restarts,
        page=page,
        note=note,
        events=tuple(last_events(Path(record.events))),
    )


def last_events(path: Path, count: int = EVENTS) -> list[dict[str, Any]]:
    """The last events of a log, oldest first; lines that are no event are passed over."""
    try:
        with path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(0, end - _TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return list(_events(lines))[-count:]


def _events(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            yield event
