"""What is worth an alert of a gateway and its servers, as rules of Prometheus. Pure.

docs/observability.md says for each alert what to do. Thresholds of times come from the objectives
of the bundle's recipe; without an objective there is no such alert.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deployer.recipe.model import Slo

JOB = "deployer"
"""The scrape job of the gateways."""
ERROR_RATE = 0.01
"""Share of failed requests above which there is an alert, unless the recipe allows more."""
CACHE_FULL = 0.95
LOOP_LAG_SECONDS = 0.1
RESTARTS = 2
WRONG_KEYS_PER_SECOND = 1
FAILED = "upstream_error|truncated|timeout"
"""Kinds of outcomes that are the servers' fault."""
ANSWERED = f"ok|{FAILED}"
"""All kinds that say something about the servers."""


@dataclass(frozen=True)
class Alert:
    """A rule: PromQL that gives a series for each fault, and how long it must hold (`1m`).

    `severity` is `page` (requests fail, or soon may) or `ticket`. `summary` may name labels.
    """

    name: str
    expr: str
    lasts: str
    severity: str
    summary: str

    def as_rule(self) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.lasts,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary},
        }


def alerts(slo: Slo) -> tuple[Alert, ...]:
    """Every alert, those of the objectives that are set included."""
    return (*_of_servers(), _of_errors(slo), *_of_objectives(slo), *_of_load())


def _of_servers() -> tuple[Alert, ...]:
    return (
        Alert(
            "DeployerGatewayAbsent",
            f'up{{job="{JOB}"}} == 0 or absent(up{{job="{JOB}"}})',
            "1m", "page", "The gateway's /metrics cannot be read.",
        ),
        Alert(
            "DeployerNobodyHealthy",
            'sum by (instance) (increase(deployer_refused_total{reason="unhealthy"}[5m])) > 0',
            "0m", "page", "Requests were refused because no server of their route was healthy.",
        ),
        Alert(
            "DeployerServerDown", "deployer_server_up == 0",
            "1m", "page", "Server {{ $labels.server }} is not ready.",
        ),
        Alert(
            "DeployerServerRestarts",
            f"increase(deployer_server_restarts_total[15m]) > {RESTARTS}",
            "0m", "ticket", "Server {{ $labels.server }} was started again and again.",
        ),
        Alert(
            "DeployerServerUnfit", "deployer_server_fit == 0",
            "2m", "ticket", "Server {{ $labels.server }} gets no requests of {{ $labels.route }}.",
        ),
        Alert(
            "DeployerFallbackActive", "deployer_fallback_active == 1",
            "1m", "ticket", "The fallback of {{ $labels.route }} answers.",
        ),
        Alert(
            "DeployerQualityProbeFailing", "deployer_probe_correct < 1",
            "2m", "ticket",
            "Server {{ $labels.server }} answers questions of {{ $labels.route }} wrongly.",
        ),
    )  # fmt: skip


def _of_errors(slo: Slo) -> Alert:
    limit = error_limit(slo)
    route = "{{ $labels.route }}"
    failed = f'sum by (instance, route) (rate(deployer_requests_total{{kind=~"{FAILED}"}}[5m]))'
    every = f'sum by (instance, route) (rate(deployer_requests_total{{kind=~"{ANSWERED}"}}[5m]))'
    return Alert(
        "DeployerErrorRate", f"{failed} / {every} > {limit:g}",
        "2m", "page", f"More than {100 * limit:g} % of the requests for {route} fail.",
    )  # fmt: skip


def error_limit(slo: Slo) -> float:
    """The share of requests that may fail: the recipe's where it allows any."""
    return max(slo.max_error_rate, ERROR_RATE)


def _of_objectives(slo: Slo) -> Iterable[Alert]:
    """One for each 95th percentile that the recipe limits."""
    for name, metric, limit_ms, what in (
        ("Ttft", "deployer_ttft_seconds", slo.ttft_p95_ms, "time to first token"),
        ("Tpot", "deployer_tpot_seconds", slo.tpot_p95_ms, "time per output token"),
        ("Request", "deployer_request_seconds", slo.e2e_p95_ms, "time of whole requests"),
    ):
        if limit_ms is not None:
            shown = "{{ $labels.route }} at {{ $labels.server }}"
            yield Alert(
                f"Deployer{name}OverObjective",
                f"histogram_quantile(0.95, sum by (instance, route, server, le) "
                f"(rate({metric}_bucket[5m]))) > {limit_ms / 1000:g}",
                "5m", "ticket", f"The {what} of {shown} misses the objective of {limit_ms:g} ms.",
            )  # fmt: skip


def _of_load() -> tuple[Alert, ...]:
    return (
        Alert(
            "DeployerQueueGrowing", "min_over_time(deployer_waiting[5m]) > 0",
            "5m", "ticket", "Requests for {{ $labels.route }} have waited for a slot all the time.",
        ),
        Alert(
            "DeployerTooManyRequests",
            'sum by (instance) (rate(deployer_refused_total{reason="busy"}[5m])) > 0',
            "5m", "ticket", "Requests are answered with 429 for want of a slot.",
        ),
        Alert(
            "DeployerWrongKeys",
            'sum by (instance) (rate(deployer_refused_total{reason="key"}[5m])) '
            f"> {WRONG_KEYS_PER_SECOND}",
            "5m", "ticket", "Somebody tries wrong API keys.",
        ),
        Alert(
            "DeployerCacheFull", f"deployer_engine_cache_used_ratio > {CACHE_FULL}",
            "10m", "ticket", "The key-value cache of {{ $labels.server }} is full.",
        ),
        Alert(
            "DeployerEventLoopLag",
            f"min_over_time(deployer_event_loop_lag_seconds[1m]) > {LOOP_LAG_SECONDS}",
            "5m", "ticket", "The gateway is late: its core is busy.",
        ),
    )  # fmt: skip
