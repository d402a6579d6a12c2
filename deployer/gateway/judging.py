"""Whether servers are fit to get requests, and when they are probed. Pure, with a clock.

A server is unfit for a route as long as one of these holds:

    not_ready    the deployment's table does not call it ready
    connection   three requests in a row got no whole answer, and where the server answered them
                 with errors, a probe got none either; one good probe ends it
    objectives   it missed what the route demands, over the route's window
    quality      it answered a round of the route's questions with too few right answers

`objectives` and `quality` end when the server has passed its probes for `recover_after` seconds.
Clients that leave, wrong requests and full queues say nothing about a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from deployer.gateway.events import OnEvent
from deployer.gateway.outcome import Outcome
from deployer.gateway.routing import Table
from deployer.gateway.standing import Change, Judge, Probed, Reason, Server
from deployer.gateway.window import FAILED
from deployer.recipe.deployment import Route


@dataclass(frozen=True)
class Probe:
    """A probe that is due: one token, and the route's questions where it has some."""

    route: Route
    server: str
    instance: str


@dataclass(frozen=True)
class Standing:
    """What is thought of a server; `correct` is the share of the last round, None before it."""

    route: str
    server: str
    fit: bool
    reasons: tuple[Reason, ...]
    correct: float | None


class Judges:
    """All servers of a table, for each route that they are in.

    `clock` gives seconds that never go back. Events: server_up, server_down, server_unfit,
    server_fit, fallback_on, fallback_off.
    """

    def __init__(self, clock: Callable[[], float], on_event: OnEvent) -> None:
        self._clock = clock
        self._on_event = on_event
        self._servers: dict[str, Server] = {}
        self._judges: dict[tuple[str, str], Judge] = {}
        self._routes: tuple[Route, ...] = ()
        self._fallbacks: dict[str, bool] = {}

    def apply(self, table: Table) -> None:
        """Go by a new table; what is known of servers and routes that stay is kept."""
        changes = self._renew_servers(table)
        self._routes = table.routes
        self._judges = {
            (route.model, name): self._renewed(route, name, changes.get(name, "same"))
            for route in table.routes
            for name in _servers_of(route)
        }
        models = {route.model for route in table.routes}
        self._fallbacks = {model: on for model, on in self._fallbacks.items() if model in models}
        self._look()

    def _renew_servers(self, table: Table) -> dict[str, Change]:
        named = {name for route in table.routes for name in _servers_of(route)}
        names = named | {upstream.name for upstream in table.upstreams}
        changes: dict[str, Change] = {}
        for name in sorted(names | set(self._servers)):
            server = self._servers.setdefault(name, Server())
            was_ready = server.ready
            changes[name] = server.renew(table.upstream(name))
            if server.ready and not was_ready:
                self._on_event("server_up", server=name)
            elif was_ready and not server.ready:
                state = server.upstream.state if server.upstream else "gone"
                self._on_event("server_down", server=name, state=state)
        self._servers = {name: self._servers[name] for name in names}
        return changes

    def _renewed(self, route: Route, name: str, change: Change) -> Judge:
        now, state, judged = self._clock(), self._servers[name], name in route.to
        known = self._judges.get((route.model, name))
        if known is None:
            return Judge(route, name, state, judged, probe_at=now)
        before = (known.route.objectives, known.route.quality)
        known.route, known.state, known.judged = route, state, judged
        if change == "replaced" or before != (route.objectives, route.quality):
            known.forget(now)
        elif change == "restarted":
            known.restart(now)
        return known

    def observe(self, outcome: Outcome) -> None:
        """Take what became of a request; copies for shadows and probes do not count."""
        server = self._servers.get(outcome.server)
        if server is None or outcome.shadow or outcome.probe:
            return
        judge = self._judges.get((outcome.route, outcome.server))
        if judge is not None:
            judge.observe(outcome, self._clock())
        if outcome.kind == "ok":
            server.failures = 0
        elif outcome.kind in FAILED:
            server.failed(outcome)
            if server.suspected:
                self._suspect(outcome.server)

    def _suspect(self, server: str) -> None:
        for judge in self._judges.values():
            if judge.server == server:
                judge.suspect(self._clock())
        self._look()

    def fit(self, route: str, server: str) -> bool:
        """Whether the server should get requests of the route."""
        judge = self._judges.get((route, server))
        return judge is not None and judge.fit

    def usable(self, route: str, server: str) -> bool:
        """Whether the server answers at all, be it slowly or wrongly."""
        judge = self._judges.get((route, server))
        return judge is not None and judge.usable

    def review(self) -> None:
        """See whether the objectives hold; to be called about once a second."""
        now = self._clock()
        for judge in self._judges.values():
            judge.judge(now)
        self._look()

    def due(self) -> list[Probe]:
        """Probes to be made now; each is given once, until `probed` tells of it."""
        now = self._clock()
        due = [judge for judge in self._judges.values() if judge.is_due(now)]
        for judge in due:
            judge.probing = True
        return [Probe(judge.route, judge.server, judge.state.instance) for judge in due]

    def probed(self, probe: Probe, found: Probed | None) -> None:
        """Take what a probe found; None where there was no free slot for it."""
        judge = self._judges.get((probe.route.model, probe.server))
        if judge is not None and judge.state.instance == probe.instance:
            judge.probed(found, self._clock())
            self._look()

    def standings(self) -> Iterator[Standing]:
        """What is thought of each server for each route."""
        for judge in self._judges.values():
            reasons = judge.reasons
            yield Standing(judge.route.model, judge.server, not reasons, reasons, judge.correct)

    def fallbacks(self) -> dict[str, bool]:
        """Route: whether its requests go to its fallback now; of routes that have one."""
        return {
            route.model: self._fallbacks.get(route.model, False)
            for route in self._routes
            if route.fallback
        }

    def _look(self) -> None:
        """Tell of what became fit or unfit, and of fallbacks."""
        for judge in self._judges.values():
            if judge.fit == judge.known_as_fit:
                continue
            judge.known_as_fit = judge.fit
            names = {"route": judge.route.model, "server": judge.server}
            if judge.fit:
                self._on_event("server_fit", **names)
            else:
                judge.hasten(self._clock())
                self._on_event("server_unfit", **names, reasons=judge.reasons,
                               detail=judge.describe())  # fmt: skip
        for route in self._routes:
            if route.fallback:
                self._look_at_fallback(route, route.fallback)

    def _look_at_fallback(self, route: Route, fallback: str) -> None:
        own = [self._judges[route.model, name] for name, weight in route.to.items() if weight]
        active = self.fit(route.model, fallback) and not any(judge.fit for judge in own)
        if active == self._fallbacks.get(route.model, False):
            return
        self._fallbacks[route.model] = active
        names = {"route": route.model, "fallback": fallback}
        if active:
            details = {judge.server: judge.describe() for judge in own}
            self._on_event("fallback_on", **names, reason=_first(own), details=details)
        else:
            self._on_event("fallback_off", **names)


def _servers_of(route: Route) -> Iterable[str]:
    shadow = route.shadow.server if route.shadow else None
    return dict.fromkeys(name for name in (*route.to, route.fallback, shadow) if name)


def _first(judges: Iterable[Judge]) -> Reason:
    """The reason that a fallback is counted under: that of the first server with one."""
    return next(reason for judge in judges for reason in judge.reasons)
