"""Which servers a request may go to now: choice, health, context, and what it tried before."""

from __future__ import annotations

from collections.abc import Callable

from deployer.gateway.admission import Candidates
from deployer.gateway.choosing import Choice, choose
from deployer.gateway.exchange import Exchange
from deployer.gateway.judging import Judges
from deployer.gateway.refusals import invalid
from deployer.gateway.routing import Table, Upstream
from deployer.recipe.deployment import Route

DOWN_SECONDS = 0.5
"""How long a server that refused a connection is left alone, unless the table changes."""
COMING = frozenset({"starting", "ready", "restarting"})
"""States of a server that may answer soon."""


class Finder:
    """Finds servers for requests; `table` and `clock` are the gateway's."""

    def __init__(
        self, table: Callable[[], Table], judges: Judges, clock: Callable[[], float]
    ) -> None:
        self._table = table
        self._judges = judges
        self._clock = clock
        self._down: dict[str, float] = {}

    def mark_down(self, instance: str) -> None:
        """Leave a server alone for a moment: it could not be reached."""
        self._down[instance] = self._clock() + DOWN_SECONDS

    def mood(self) -> tuple[object, ...]:
        """Changes when those who wait may have another choice than before."""
        now = self._clock()
        self._down = {name: until for name, until in self._down.items() if until > now}
        table = self._table()
        fit = tuple((s.route, s.server, s.fit) for s in self._judges.standings())
        return id(table), fit, tuple(self._down)

    def check(self, exchange: Exchange) -> None:
        """Refuse (400) what no server of the route has the context for."""
        wanted = exchange.asked.max_tokens
        there = self._servers_of(exchange.route)
        largest = max((upstream.context for upstream in there), default=None)
        if wanted is not None and largest is not None and wanted > largest:
            raise invalid(
                f"max_tokens is {wanted}, and a request may use {largest} tokens altogether",
                "max_tokens",
                "context_length_exceeded",
            )

    def find(self, exchange: Exchange, tried: set[str]) -> Candidates:
        """The servers that the exchange may go to, best first; never those of `tried`.

        The fallback stands alone or not at all: it answers where no server of the route can, and
        not where those are busy. A session waits for its own server.
        """
        table = self._table()
        route = table.route(exchange.route.model)
        if route is None:
            return Candidates((), hope=False)
        choice = self.choice(table, route, exchange.session, exchange.draw)
        own = [name for name in choice.servers if name != choice.fallback]
        found = self._open(table, own, exchange, tried)
        if not found and choice.fallback:
            found = self._open(table, [choice.fallback], exchange, tried)
        if exchange.session is not None:
            found = found[:1]
        return Candidates(tuple(found), hope=bool(found) or self._hope(route, tried))

    def choice(self, table: Table, route: Route, session: str | None, draw: float) -> Choice:
        """What weights, session and health say."""
        model, judges = route.model, self._judges
        return choose(
            table,
            route,
            lambda server: judges.fit(model, server),
            session,
            draw,
            lambda server: judges.usable(model, server),
        )

    def _open(
        self, table: Table, names: list[str], exchange: Exchange, tried: set[str]
    ) -> list[Upstream]:
        wanted = exchange.asked.max_tokens or 0
        now = self._clock()
        there = [upstream for name in names if (upstream := table.upstream(name)) is not None]
        return [
            upstream
            for upstream in there
            if upstream.state == "ready"
            and upstream.instance not in tried
            and upstream.context >= wanted
            and self._down.get(upstream.instance, now) <= now
        ]

    def _hope(self, route: Route, tried: set[str]) -> bool:
        """Whether a server that was not tried may come (back) soon."""
        there = self._servers_of(route)
        return any(each.state in COMING and each.instance not in tried for each in there)

    def _servers_of(self, route: Route) -> list[Upstream]:
        names = [name for name, weight in route.to.items() if weight]
        table = self._table()
        there = (table.upstream(name) for name in (*names, route.fallback) if name)
        return [upstream for upstream in there if upstream is not None]
