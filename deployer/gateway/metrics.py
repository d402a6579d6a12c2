"""The gateway's own figures for Prometheus.

Labels have values of the table and of the keys file only, never a client's: whatever is asked,
the number of series stays bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from deployer.gateway.judging import Standing
from deployer.gateway.keys import ANONYMOUS
from deployer.gateway.outcome import Outcome
from deployer.gateway.routing import Table

REASONS = (
    "key", "host", "model", "path", "method", "size", "request", "limit", "busy", "draining",
    "unhealthy",
)  # fmt: skip
"""Why a request is refused before a server gets it."""

_TTFT = (
    0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0, 120.0,
)  # fmt: skip
_TPOT = (
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0,
)  # fmt: skip
_REQUEST = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_QUEUE = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

LAGS = 150
"""Measurements of the event loop's lag that its gauge is the largest of."""

_Metric = Counter | Gauge | Histogram


class GatewayMetrics:
    """All metrics, in a registry of their own."""

    def __init__(self) -> None:
        # A second series for each first one, with the time it was made, helps nobody here.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._routes: frozenset[str] = frozenset()
        self._servers: frozenset[str] = frozenset()
        self._keys: frozenset[str] = frozenset({ANONYMOUS})
        self._restarts: dict[str, int] = {}
        self._lags: deque[float] = deque(maxlen=LAGS)
        self._make_request_metrics()
        self._make_server_metrics()
        for reason in REASONS:
            self._refused.labels(reason)

    def _make_request_metrics(self) -> None:
        both = ("route", "server")
        self._requests = self._counter(
            "deployer_requests_total", "Requests by what became of them.", (*both, "kind")
        )
        self._refused = self._counter(
            "deployer_refused_total", "Requests that reached no server, by reason.", ("reason",)
        )
        self._ttft = self._histogram(
            "deployer_ttft_seconds", "Time to first token of streams.", both, _TTFT
        )
        self._tpot = self._histogram(
            "deployer_tpot_seconds", "Time per output token of streams.", both, _TPOT
        )
        self._seconds = self._histogram(
            "deployer_request_seconds", "Whole time of answered requests.", both, _REQUEST
        )
        self._queued = self._histogram(
            "deployer_queue_seconds", "Time that requests waited for a slot.", ("route",), _QUEUE
        )
        self._tokens = self._counter(
            "deployer_tokens_total", "Tokens by the engines' count.", (*both, "direction")
        )
        self._key_tokens = self._counter(
            "deployer_key_tokens_total", "Tokens that a key used.", ("key",)
        )
        self._shadows = self._counter(
            "deployer_shadow_total", "Copies of requests, by what became of them.", (*both, "kind")
        )
        self._shadow_ttft = self._histogram(
            "deployer_shadow_ttft_seconds", "Time to first token of copies.", both, _TTFT
        )
        self._shadow_tpot = self._histogram(
            "deployer_shadow_tpot_seconds", "Time per output token of copies.", both, _TPOT
        )

    def _make_server_metrics(self) -> None:
        both = ("route", "server")
        self._running = self._gauge(
            "deployer_running", "Requests that run at a server.", ("server",)
        )
        self._waiting = self._gauge(
            "deployer_waiting", "Requests that wait for a slot.", ("route",)
        )
        self._up = self._gauge("deployer_server_up", "1 while a server is ready.", ("server",))
        self._restarted = self._counter(
            "deployer_server_restarts_total", "Times a server was started again.", ("server",)
        )
        self._fit = self._gauge(
            "deployer_server_fit", "1 while a server gets requests of a route.", both
        )
        self._correct = self._gauge(
            "deployer_probe_correct", "Share of right answers in the last round.", both
        )
        self._probes = self._counter(
            "deployer_probes_total", "Probes by what became of them.", (*both, "kind")
        )
        self._fallback = self._gauge(
            "deployer_fallback_active", "1 while a route's fallback answers.", ("route",)
        )
        self._fallbacks = self._counter(
            "deployer_fallbacks_total", "Times a fallback took over.", ("route", "reason")
        )
        self._generation = self._gauge(
            "deployer_table_generation", "Generation of the deployment in force."
        )
        self._streams = self._gauge("deployer_open_streams", "Streams that are open.")
        self._lag = self._gauge(
            "deployer_event_loop_lag_seconds", "Largest lag of the event loop a short while back."
        )

    def _counter(self, name: str, told: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(name, told, labels, registry=self.registry)

    def _gauge(self, name: str, told: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(name, told, labels, registry=self.registry)

    def _histogram(
        self, name: str, told: str, labels: Iterable[str], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(name, told, labels, buckets=buckets, registry=self.registry)

    def apply(self, table: Table) -> None:
        """Go by a new table; series of servers and routes that are no more are removed."""
        self._generation.set(table.generation)
        self._routes = frozenset(route.model for route in table.routes)
        self._servers = frozenset(upstream.name for upstream in table.upstreams)
        self._prune()
        for route in table.routes:
            self._waiting.labels(route.model)
            if route.fallback:
                self._fallback.labels(route.model)
        for name in self._servers:
            upstream = table.upstream(name)
            self._up.labels(name).set(upstream is not None and upstream.state == "ready")
            self._running.labels(name)
            self._restarted.labels(name)
        self._count_restarts(table)

    def _count_restarts(self, table: Table) -> None:
        counted = {upstream.instance: upstream.restarts for upstream in table.upstreams}
        for upstream in table.upstreams:
            more = upstream.restarts - self._restarts.get(upstream.instance, 0)
            self._restarted.labels(upstream.name).inc(max(0, more))
        self._restarts = counted

    def keep_keys(self, ids: frozenset[str]) -> None:
        """Forget the keys that are no more; ids of keys are the file's, never a client's."""
        self._keys = ids
        self._prune()

    def _prune(self) -> None:
        kept = {
            "route": self._routes | {""},
            "server": self._servers | {""},
            "key": self._keys,
        }
        for metric in vars(self).values():
            if isinstance(metric, _Metric) and metric._labelnames:
                _remove_others(metric, kept)

    def observe(self, outcome: Outcome) -> None:
        """Count what became of a request, a copy for a shadow, or a probe."""
        route = outcome.route if outcome.route in self._routes else ""
        server = outcome.server if outcome.server in self._servers else ""
        if outcome.probe:
            self._probes.labels(route, server, outcome.kind).inc()
            return
        if outcome.shadow:
            self._shadows.labels(route, server, outcome.kind).inc()
            self._time(outcome, self._shadow_ttft, self._shadow_tpot, route, server)
            return
        self._requests.labels(route, server, outcome.kind).inc()
        self._time(outcome, self._ttft, self._tpot, route, server)
        if outcome.kind == "ok":
            self._seconds.labels(route, server).observe(outcome.seconds)
        if server:
            self._queued.labels(route).observe(outcome.queued)
        self._count_tokens(outcome, route, server)

    def _time(
        self, outcome: Outcome, ttft: Histogram, tpot: Histogram, route: str, server: str
    ) -> None:
        if outcome.ttft is not None:
            ttft.labels(route, server).observe(outcome.ttft)
        if outcome.tpot is not None:
            tpot.labels(route, server).observe(outcome.tpot)

    def _count_tokens(self, outcome: Outcome, route: str, server: str) -> None:
        counts = {"prompt": outcome.prompt_tokens, "output": outcome.output_tokens}
        for direction, count in counts.items():
            if count:
                self._tokens.labels(route, server, direction).inc(count)
        used = sum(count or 0 for count in counts.values())
        if used and outcome.key:
            self._key_tokens.labels(outcome.key).inc(used)

    def refused(self, reason: str) -> None:
        """Count a request that no server got, for one of `REASONS`."""
        self._refused.labels(reason).inc()

    def shadow_dropped(self, route: str, server: str) -> None:
        """Count a copy that was not made, for want of room."""
        self._shadows.labels(route, server, "dropped").inc()

    def event(self, event: str, /, **fields: object) -> None:
        """Count what judges tell of: how often a fallback took over."""
        if event == "fallback_on":
            self._fallbacks.labels(fields["route"], fields["reason"]).inc()

    def stand(self, standings: Iterable[Standing], fallbacks: Mapping[str, bool]) -> None:
        """Show what is thought of the servers, and which routes are at their fallback."""
        for one in standings:
            if one.route not in self._routes or one.server not in self._servers:
                continue
            self._fit.labels(one.route, one.server).set(one.fit)
            if one.correct is not None:
                self._correct.labels(one.route, one.server).set(one.correct)
        for route, active in fallbacks.items():
            self._fallback.labels(route).set(active)

    def load(self, running: Mapping[str, int], waiting: Mapping[str, int], streams: int) -> None:
        """Show requests that run (by server) and wait (by route) now, and streams that are open."""
        for server in self._servers:
            self._running.labels(server).set(running.get(server, 0))
        for route in self._routes:
            self._waiting.labels(route).set(waiting.get(route, 0))
        self._streams.set(streams)

    def lag(self, seconds: float) -> None:
        """Take one measurement of how late the event loop was."""
        self._lags.append(seconds)

    def render(self) -> bytes:
        """The page in Prometheus' text format."""
        self._lag.set(max(self._lags, default=0.0))
        return generate_latest(self.registry)


def _remove_others(metric: _Metric, kept: Mapping[str, frozenset[str]]) -> None:
    """Remove the series whose labels name what is no more."""
    for values in list(metric._metrics):
        labels = zip(metric._labelnames, values, strict=True)
        if any(value not in kept[name] for name, value in labels if name in kept):
            metric.remove(*values)
