"""The gateway: what is asked on which path, by whom, and everything that takes part in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address
from pathlib import Path

import aiohttp
from aiohttp import web

from deployer.errors import UsageError
from deployer.gateway.admission import Admission, Candidates
from deployer.gateway.bodies import read_body
from deployer.gateway.events import OnEvent
from deployer.gateway.exchange import Exchange
from deployer.gateway.finding import Finder
from deployer.gateway.hosts import are_ours
from deployer.gateway.judging import Judges
from deployer.gateway.keys import Key, KeyRing
from deployer.gateway.limits import Limits
from deployer.gateway.metrics import GatewayMetrics
from deployer.gateway.openapi import document
from deployer.gateway.outcome import Outcome
from deployer.gateway.proxy import Proxy
from deployer.gateway.refusals import (
    BROKEN,
    Refusal,
    draining,
    no_key,
    no_such_host,
    no_such_model,
    not_for_this_key,
    over_the_limit,
)
from deployer.gateway.replies import Replies
from deployer.gateway.requests import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MAX_SESSION,
    Asked,
    read_request,
)
from deployer.gateway.routing import Table, TableFile, Upstream
from deployer.gateway.scraping import Scraper
from deployer.gateway.shadows import Shadows
from deployer.gateway.tracing import Tracer
from deployer.recipe.deployment import Gateway, Route

HEALTH, METRICS, OPENAPI, MODELS = "/health", "/metrics", "/openapi.json", "/v1/models"
OPERATIONS = {CHAT: "chat", COMPLETIONS: "text_completion", EMBEDDINGS: "embeddings"}
METHODS = {
    **dict.fromkeys((HEALTH, METRICS, OPENAPI, MODELS), "GET"), **dict.fromkeys(OPERATIONS, "POST")
}  # fmt: skip
"""All that can be asked. Whatever else an engine offers is not reached from here."""
PROBE_WAIT = 3.0
"""Seconds that a probe waits for a slot."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")
_log = logging.getLogger(__name__)


class App:
    """One gateway. `handle` answers requests; `draining` is told to those who ask for health."""

    def __init__(
        self,
        tables: TableFile,
        session: aiohttp.ClientSession,
        on_event: OnEvent,
        clock: Callable[[], float],
    ) -> None:
        self.tables = tables
        self.clock = clock
        self.metrics = GatewayMetrics()
        self._log_event = on_event
        self.keys = KeyRing(_keys_of(tables.table), self.on_event)
        self.limits = Limits(clock)
        self.judges = Judges(clock, self.on_event)
        self.admission = Admission(clock)
        self.finder = Finder(tables.get, self.judges, clock)
        self.replies = Replies(clock)
        self.scraper = Scraper(session, clock)
        self._traces = tables.table.gateway.traces
        self.tracer = Tracer.of(self._traces)
        shadows = (session, tables.get, self.admission, clock)
        self.shadows = Shadows(*shadows, self.observe, self.metrics.shadow_dropped)
        self.proxy = Proxy(
            session, tables.get, self.finder, self.admission, self.replies, self.shadows, clock,
            self._observe,
        )  # fmt: skip
        self.running: set[asyncio.Task[object]] = set()
        self.draining = False
        self._answers = {HEALTH: self._health, METRICS: self._metrics,
                         OPENAPI: self._openapi, MODELS: self._models}  # fmt: skip

    def on_event(self, event: str, /, **fields: object) -> None:
        self._log_event(event, **fields)
        self.metrics.event(event, **fields)

    def observe(self, outcome: Outcome) -> None:
        """Count what became of a request, a copy or a probe."""
        self.metrics.observe(outcome)
        self.judges.observe(outcome)

    def _observe(self, outcome: Outcome, exchange: Exchange, upstream: Upstream | None) -> None:
        self.observe(outcome)
        exchange.trace.observe(outcome, upstream)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, whatever happens."""
        given = request.headers.get("X-Request-Id", "")
        id_ = given if _ID.fullmatch(given) else secrets.token_hex(16)
        task = asyncio.current_task()
        assert task is not None
        self.running.add(task)
        try:
            return await self._answer(request, id_)
        except Refusal as refusal:
            if refusal.reason:
                self.metrics.refused(refusal.reason)
            return self.replies.error(id_, refusal)
        except asyncio.CancelledError:
            if not self.proxy.cutting:
                raise
            task.uncancel()
            self.metrics.refused("draining")
            return self.replies.error(id_, draining())
        except Exception:
            _log.exception("a request failed by a fault of the gateway")
            fault = Refusal(500, "the gateway failed", reason="", type_=BROKEN, code="internal")
            return self.replies.error(id_, fault)
        finally:
            self.running.discard(task)

    async def _answer(self, request: web.BaseRequest, id_: str) -> web.StreamResponse:
        path = request.rel_url.raw_path
        gateway = self.tables.table.gateway
        if gateway.keys is None and path != HEALTH and not _is_named_well(request, gateway):
            raise no_such_host()
        method = METHODS.get(path)
        if method is None:
            raise Refusal(404, "there is nothing here", reason="path", code="not_found")
        if request.method != method:
            raise Refusal(
                405, f"{path} is for {method}", reason="method", code="method_not_allowed",
                headers={"Allow": method},
            )  # fmt: skip
        if path in OPERATIONS:
            return await self._generate(request, id_, path)
        return self._answers[path](request, id_)

    def _health(self, request: web.BaseRequest, id_: str) -> web.Response:
        """200 while somebody can answer, for a load balancer and the supervisor."""
        served = [bool(self._servers_of(route)) for route in self.tables.table.routes]
        if self.draining:
            status = "draining"
        elif not any(served):
            status = "unhealthy"
        else:
            status = "ok" if all(served) else "degraded"
        good = status in ("ok", "degraded")
        body = {"status": status, "generation": self.tables.table.generation}
        return self.replies.json(id_, body, status=200 if good else 503)

    def _servers_of(self, route: Route) -> tuple[str, ...]:
        return self.finder.choice(self.tables.table, route, None, 0.0).servers

    def _metrics(self, request: web.BaseRequest, id_: str) -> web.Response:
        """For Prometheus, without a key from this machine itself."""
        if not _is_local(request, self.tables.table.gateway):
            self._key(request)
        self.metrics.load(*self._load(), self.replies.open_streams)
        self.metrics.stand(self.judges.standings(), self.judges.fallbacks())
        body = self.metrics.render() + self.scraper.render()
        return self.replies.whole(id_, body, METRICS_TYPE)

    def _load(self) -> tuple[Counter[str], dict[str, int]]:
        """(running requests by server, waiting ones by route)."""
        running: Counter[str] = Counter()
        for upstream in self.tables.table.upstreams:
            running[upstream.name] += self.admission.running(upstream.instance)
        routes = self.tables.table.routes
        return running, {route.model: self.admission.waiting(route.model) for route in routes}

    def _openapi(self, request: web.BaseRequest, id_: str) -> web.Response:
        self._key(request)
        largest = max((each.context for each in self.tables.table.upstreams), default=1)
        return self.replies.json(id_, document(largest))

    def _models(self, request: web.BaseRequest, id_: str) -> web.Response:
        """The routes that the key may use."""
        key = self._key(request)
        models = [
            {"id": route.model, "object": "model", "created": 0, "owned_by": "deployer"}
            for route in self.tables.table.routes
            if key.allows(route.model)
        ]
        return self.replies.json(id_, {"object": "list", "data": models})

    def _key(self, request: web.BaseRequest) -> Key:
        key = self.keys.find(request.headers.get("Authorization"))
        if key is None:
            raise no_key()
        return key

    async def _generate(self, request: web.BaseRequest, id_: str, path: str) -> web.StreamResponse:
        """A request for an engine: who asks, what, whether now; then the proxy has it."""
        key = self._key(request)
        raw = await read_body(request, self.tables.table.gateway.max_request_kib << 10)
        asked = read_request(path, raw)
        route = self.tables.table.route(asked.model)
        if route is None:
            raise no_such_model(asked.model)
        if not key.allows(route.model):
            raise not_for_this_key(route.model)
        session = _session_of(request, route, key, asked)
        exchange = Exchange(
            id_, key, asked, route, session, random.random(), request.headers, len(raw)
        )
        self.finder.check(exchange)
        wait = self.limits.admit(key)
        if wait is not None:
            raise over_the_limit(wait)
        try:
            names = (OPERATIONS[path], route.model, asked.stream)
            with self.tracer.request(request.headers, *names) as exchange.trace:
                return await self.proxy.serve(request, exchange)
        finally:
            self.limits.finish(key, exchange.tokens)

    @contextlib.asynccontextmanager
    async def hold(self, server: str) -> AsyncIterator[bool]:
        """A slot of a server for a probe; False where none comes free soon."""

        def find() -> Candidates:
            upstream = self.tables.table.upstream(server)
            return Candidates((upstream,) if upstream else (), hope=False)

        slot = None
        with contextlib.suppress(Refusal):
            slot = await self.admission.enter("", find, 1 << 30, PROBE_WAIT)
        try:
            yield slot is not None
        finally:
            if slot is not None:
                slot.release()

    def apply(self) -> None:
        """Go by the table in force, as a whole."""
        table = self.tables.table
        self.judges.apply(table)
        self.metrics.apply(table)
        self.keys.use(_keys_of(table))
        self._trace_to(table.gateway.traces)
        self.admission.poke()

    def _trace_to(self, url: str | None) -> None:
        """Send traces to another collector, or to none."""
        if url == self._traces:
            return
        self._traces = url
        try:
            tracer = Tracer.of(url)
        except UsageError as error:
            self.on_event("traces_refused", reason=error.message)
            return
        old, self.tracer = self.tracer, tracer
        asyncio.get_running_loop().run_in_executor(None, old.close)

    def keep_keys(self) -> None:
        """Forget what was counted for keys that are no more."""
        ids = self.keys.ids
        self.metrics.keep_keys(ids)
        self.limits.keep(ids)


def _keys_of(table: Table) -> Path | None:
    return Path(table.gateway.keys) if table.gateway.keys else None


def _session_of(request: web.BaseRequest, route: Route, key: Key, asked: Asked) -> str | None:
    """What a sticky route goes by, None where the request goes anywhere."""
    if route.sticky == "key":
        return key.id
    if route.sticky == "session":
        return request.headers.get("X-Session-Id", "")[:MAX_SESSION] or asked.user
    return None


def _is_named_well(request: web.BaseRequest, gateway: Gateway) -> bool:
    return are_ours(request.headers.getall("Host", ()), (gateway.host, *gateway.hosts))


def _is_local(request: web.BaseRequest, gateway: Gateway) -> bool:
    """Whether the request was sent on this machine, and not on behalf of another one or a page."""
    if any(name in request.headers for name in _FORWARDED) or not _is_named_well(request, gateway):
        return False
    try:
        return ip_address((request.remote or "").partition("%")[0]).is_loopback
    except ValueError:
        return False
