"""From two looks to rates, quantiles and rows: what is known, and what stays blank."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from deployer.engine_metrics import EngineMetrics
from deployer.gateway.exposition import samples
from deployer.workflow.watched import (
    Look,
    Page,
    SeenDeployment,
    SeenServer,
    Usage,
    quantile,
    rate,
    view,
)

SERVER = SeenServer("q4", "ready", "http://127.0.0.1:1", 60.0, 1)


class Gateway:
    """The figures of a gateway, as its /metrics tells them."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        both = ["route", "server"]
        self.requests = Counter("deployer_requests", "-", [*both, "kind"], registry=registry)
        self.refused = Counter("deployer_refused", "-", ["reason"], registry=registry)
        self.ttft = Histogram(
            "deployer_ttft_seconds", "-", both, buckets=(0.1, 0.2, 0.4), registry=registry
        )
        self.waiting = Gauge("deployer_waiting", "-", ["route"], registry=registry)
        self.fallback = Gauge("deployer_fallback_active", "-", ["route"], registry=registry)
        self.fit = Gauge("deployer_server_fit", "-", both, registry=registry)
        self.waiting.labels("chat").set(3)
        self.waiting.labels("other").set(0)
        self.fallback.labels("chat").set(1)
        self.fit.labels("chat", "q4").set(0)
        self.fit.labels("chat", "f16").set(1)

    def seen(self) -> SeenDeployment:
        page = Page.of(samples(generate_latest(self.registry).decode(), "deployer_"))
        return SeenDeployment("d", "ready", "http://127.0.0.1:8000", 2, 9.0, 0, page)


def test_a_server_s_rates_are_differences_of_its_counters() -> None:
    before = replace(
        SERVER, metrics=EngineMetrics(prompt_tokens=100, output_tokens=50), usage=Usage(1, 2.0)
    )
    now = replace(
        SERVER,
        metrics=EngineMetrics(running=2, prompt_tokens=300, output_tokens=40, cache_used=0.5),
        usage=Usage(700, 5.0),
    )
    (row,) = view(Look(10.0, (before,)), Look(12.0, (now,))).servers
    assert (row.prompt_tokens_s, row.cores, row.memory_bytes) == (100.0, 1.5, 700)
    assert (row.running, row.waiting, row.cache_used) == (2, None, 0.5)
    assert row.output_tokens_s is None  # the engine was started again in between


def test_what_was_not_measured_is_blank() -> None:
    (row,) = view(None, Look(1.0, (SERVER,))).servers
    told = {"name": "q4", "state": "ready", "uptime_s": 60.0, "restarts": 1}
    assert {key: value for key, value in vars(row).items() if value is not None} == told
    absent = SeenDeployment("d", "starting", "http://127.0.0.1:8000", 1, None, 0, note="no answer")
    (shown,) = view(None, Look(1.0, (), (absent,))).deployments
    assert (shown.note, shown.routes, shown.refused_s) == ("no answer", (), None)


@pytest.mark.parametrize(
    ("before", "now", "seconds", "expected"),
    [(1, 5, 2.0, 2.0), (5, 1, 2.0, None), (None, 1, 2.0, None), (1, None, 2.0, None),
     (1, 2, None, None), (1, 2, 0.0, None), (3, 3, 1.0, 0.0)],
)  # fmt: skip
def test_a_rate(
    before: float | None, now: float | None, seconds: float | None, expected: float | None
) -> None:
    assert rate(before, now, seconds) == expected


def test_a_route_s_figures_are_those_of_the_time_between() -> None:
    gateway = Gateway()
    gateway.requests.labels("chat", "q4", "ok").inc(100)
    gateway.ttft.labels("chat", "q4").observe(9.0)
    before = gateway.seen()
    gateway.requests.labels("chat", "q4", "ok").inc(8)
    gateway.requests.labels("chat", "f16", "truncated").inc(2)
    gateway.requests.labels("other", "f16", "ok").inc(1)
    gateway.refused.labels("busy").inc(3)
    gateway.refused.labels("limit").inc(1)
    gateway.refused.labels("model").inc(50)
    for server in ("q4", "f16"):
        gateway.ttft.labels("chat", server).observe(0.05)
        gateway.ttft.labels("chat", server).observe(0.3)
    found = view(Look(0.0, (), (before,)), Look(2.0, (), (gateway.seen(),))).deployments[0]
    chat, other = found.routes
    assert (chat.requests_s, chat.errors_s, found.refused_s) == (5.0, 1.0, 2.0)
    assert chat.ttft_p50_s == pytest.approx(0.1)
    assert chat.ttft_p95_s == pytest.approx(0.38)
    assert (chat.waiting, chat.fallback) == (3, True)
    assert (other.requests_s, other.ttft_p50_s, other.fallback) == (0.5, None, None)
    assert found.unfit == ("q4 (chat)",)


def test_a_gateway_that_was_started_again_counts_from_nothing() -> None:
    old, new = Gateway(), Gateway()
    old.requests.labels("chat", "q4", "ok").inc(100)
    new.requests.labels("chat", "q4", "ok").inc(4)
    found = view(Look(0.0, (), (old.seen(),)), Look(2.0, (), (new.seen(),))).deployments[0]
    assert found.routes[0].requests_s == 2.0


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({}, 0.5, None),
        ({1.0: 0, float("inf"): 0}, 0.5, None),
        ({1.0: 10, float("inf"): 10}, 0.5, 0.5),
        ({1.0: 0, 2.0: 10, float("inf"): 10}, 0.5, 1.5),
        ({1.0: 1, 2.0: 1, float("inf"): 10}, 0.95, 2.0),
    ],
)
def test_a_quantile(buckets: dict[float, float], share: float, expected: float | None) -> None:
    assert quantile(buckets, share) == expected
