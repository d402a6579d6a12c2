"""From two looks at what runs to the figures that `deployer top` shows. Pure.

Rates are differences of counters over the time between the looks; what was not measured is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from deployer.engine_metrics import EngineMetrics
from deployer.gateway.exposition import Sample

FAILED = frozenset({"upstream_error", "truncated", "timeout"})
"""Kinds of outcomes that count as errors."""
TOO_MANY = frozenset({"limit", "busy"})
"""Reasons of refusals that clients see as status 429."""
Key = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name and its labels, sorted."""


@dataclass(frozen=True)
class Usage:
    """What a process and those it started take: resident bytes, processor seconds so far."""

    memory_bytes: int
    processor_seconds: float


@dataclass(frozen=True)
class SeenServer:
    """One server at one moment."""

    name: str
    state: str
    endpoint: str
    uptime_s: float | None
    restarts: int
    metrics: EngineMetrics | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Page:
    """A gateway's /metrics, as far as it is the gateway's own."""

    values: Mapping[Key, float]

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Page:
        return cls({(one.name, tuple(sorted(one.labels.items()))): one.value for one in samples})

    def sum(self, name: str, wanted: Callable[[dict[str, str]], bool] = lambda _: True) -> float:
        """The sum over a metric's series whose labels are wanted."""
        return math.fsum(
            value
            for (metric, labels), value in self.values.items()
            if metric == name and wanted(dict(labels))
        )

    def labels(self, name: str, label: str) -> list[str]:
        """The values that a label of a metric has, sorted."""
        found = (dict(labels).get(label) for metric, labels in self.values if metric == name)
        return sorted({value for value in found if value})

    def since(self, before: Page) -> Page:
        """What was added to each counter; one that was set back counts from nothing."""
        added = {}
        for key, value in self.values.items():
            old = before.values.get(key, 0.0)
            added[key] = value - old if value >= old else value
        return Page(added)


@dataclass(frozen=True)
class SeenDeployment:
    """One deployment at one moment. `note` says why `page` could not be read."""

    name: str
    state: str
    endpoint: str
    generation: int
    uptime_s: float | None
    gateway_restarts: int
    page: Page | None = None
    note: str = ""
    events: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Look:
    """All that runs, at the time `at` (monotonic seconds)."""

    at: float
    servers: tuple[SeenServer, ...] = ()
    deployments: tuple[SeenDeployment, ...] = ()


@dataclass(frozen=True)
class ServerRow:
    """`cores`: processor cores in use. Tokens are those a second. `cache_used`: 0 to 1."""

    name: str
    state: str
    uptime_s: float | None
    restarts: int
    running: float | None = None
    waiting: float | None = None
    prompt_tokens_s: float | None = None
    output_tokens_s: float | None = None
    cache_used: float | None = None
    memory_bytes: int | None = None
    cores: float | None = None


@dataclass(frozen=True)
class RouteRow:
    """A route. `errors_s` are requests a second that failed; TTFT in seconds."""

    route: str
    requests_s: float | None = None
    errors_s: float | None = None
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    waiting: float | None = None
    fallback: bool | None = None


@dataclass(frozen=True)
class DeploymentRow:
    """A deployment with its routes; `refused_s` are answers with 429 a second."""

    name: str
    state: str
    endpoint: str
    generation: int
    uptime_s: float | None
    gateway_restarts: int
    note: str = ""
    refused_s: float | None = None
    open_streams: float | None = None
    memory_bytes: float | None = None
    cores: float | None = None
    routes: tuple[RouteRow, ...] = ()
    unfit: tuple[str, ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class View:
    """What is shown. `seconds` is the time the rates are of, None without an earlier look."""

    seconds: float | None
    servers: tuple[ServerRow, ...] = field(default=())
    deployments: tuple[DeploymentRow, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def view(before: Look | None, now: Look) -> View:
    """The figures of `now`, and the rates since `before`."""
    seconds = now.at - before.at if before and now.at > before.at else None
    old_servers = {one.name: one for one in before.servers} if before else {}
    old_deployments = {one.name: one for one in before.deployments} if before else {}
    return View(
        seconds,
        tuple(_server(old_servers.get(one.name), one, seconds) for one in now.servers),
        tuple(_deployment(old_deployments.get(one.name), one, seconds) for one in now.deployments),
    )


def _server(before: SeenServer | None, now: SeenServer, seconds: float | None) -> ServerRow:
    told = now.metrics or EngineMetrics()
    old = before.metrics if before and before.metrics else EngineMetrics()
    used = before.usage.processor_seconds if before and before.usage else None
    return ServerRow(
        name=now.name,
        state=now.state,
        uptime_s=now.uptime_s,
        restarts=now.restarts,
        running=told.running,
        waiting=told.waiting,
        prompt_tokens_s=rate(old.prompt_tokens, told.prompt_tokens, seconds),
        output_tokens_s=rate(old.output_tokens, told.output_tokens, seconds),
        cache_used=told.cache_used,
        memory_bytes=now.usage.memory_bytes if now.usage else None,
        cores=rate(used, now.usage.processor_seconds if now.usage else None, seconds),
    )


def rate(before: float | None, now: float | None, seconds: float | None) -> float | None:
    """What a counter grew by a second; None where that is not known, or it began anew."""
    if before is None or now is None or not seconds or now < before:
        return None
    return (now - before) / seconds


def _deployment(
    before: SeenDeployment | None, now: SeenDeployment, seconds: float | None
) -> DeploymentRow:
    known = DeploymentRow(
        now.name, now.state, now.endpoint, now.generation, now.uptime_s, now.gateway_restarts,
        now.note, events=now.events,
    )  # fmt: skip
    page = now.page
    if page is None:
        return known
    old = before.page if before else None
    added = page.since(old) if old is not None and seconds else None
    fields: dict[str, Any] = {
        "open_streams": page.sum("deployer_open_streams"),
        "memory_bytes": page.sum("process_resident_memory_bytes") or None,
        "routes": tuple(
            _route(page, added, name, seconds) for name in page.labels("deployer_waiting", "route")
        ),
        "unfit": _unfit(page),
    }
    if added is not None and seconds:
        refused = added.sum("deployer_refused_total", lambda of: of.get("reason") in TOO_MANY)
        fields["refused_s"] = refused / seconds
        fields["cores"] = added.sum("process_cpu_seconds_total") / seconds
    return DeploymentRow(**{**vars(known), **fields})


def _unfit(page: Page) -> tuple[str, ...]:
    """Servers that get no requests of a route, as SERVER (ROUTE)."""
    return tuple(
        f"{found['server']} ({found['route']})"
        for (name, labels), value in page.values.items()
        if name == "deployer_server_fit" and not value and (found := dict(labels))
    )


def _route(page: Page, added: Page | None, route: str, seconds: float | None) -> RouteRow:
    def ours(labels: dict[str, str]) -> bool:
        return labels.get("route") == route

    fallbacks = page.labels("deployer_fallback_active", "route")
    fields: dict[str, Any] = {
        "waiting": page.sum("deployer_waiting", ours),
        "fallback": bool(page.sum("deployer_fallback_active", ours))
        if route in fallbacks
        else None,
    }
    if added is not None and seconds:
        requests = "deployer_requests_total"
        failed = added.sum(requests, lambda of: ours(of) and of.get("kind") in FAILED)
        buckets = buckets_of(added, "deployer_ttft_seconds", ours)
        fields |= {
            "requests_s": added.sum(requests, ours) / seconds,
            "errors_s": failed / seconds,
            "ttft_p50_s": quantile(buckets, 0.5),
            "ttft_p95_s": quantile(buckets, 0.95),
        }
    return RouteRow(route, **fields)


def buckets_of(
    page: Page, histogram: str, wanted: Callable[[dict[str, str]], bool]
) -> dict[float, float]:
    """Upper bound -> how many values are at most that, over all series that are wanted."""
    found: dict[float, float] = {}
    for (name, labels), value in page.values.items():
        told = dict(labels)
        if name == f"{histogram}_bucket" and "le" in told and wanted(told):
            bound = float(told["le"])
            found[bound] = found.get(bound, 0.0) + value
    return found


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """A quantile of a histogram, as Prometheus estimates it: linear within a bucket.

    None without values. Where it lies above the last bound, that bound.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if not total > 0:
        return None
    rank, low, below = share * total, 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank:
            if math.isinf(bound):
                return low
            inside = count - below
            return low + (bound - low) * ((rank - below) / inside if inside else 1.0)
        low, below = (bound if math.isfinite(bound) else low), count
    return low
