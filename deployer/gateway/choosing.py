"""Which server gets a request: by weight, by session, and the fallback where none is fit. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deployer.gateway.routing import Table
from deployer.recipe.deployment import Route


@dataclass(frozen=True)
class Choice:
    """Servers to try, the best first. `fallback` is the route's fallback where it is among them."""

    servers: tuple[str, ...]
    fallback: str | None = None


def choose(
    table: Table,
    route: Route,
    fit: Callable[[str], bool],
    session: str | None,
    draw: float,
    usable: Callable[[str], bool],
) -> Choice:
    """Order the servers that may answer a request for the route.

    Those of `to` that are fit come in an order drawn by their weights, the fallback last. Where
    nobody is fit, those come that are `usable`: they answer, but miss their aims, and that is
    better than no answer. No servers where there are none either.

    `session` (None: no stickiness) keeps its server as long as that is fit, and changes it with
    the weights as seldom as can be. Else `draw`, evenly from [0, 1), decides.
    """
    there = {name: weight for name, weight in route.to.items() if weight and table.upstream(name)}
    fallback = route.fallback if route.fallback and table.upstream(route.fallback) else None
    for good in (fit, usable):
        weights = {name: weight for name, weight in there.items() if good(name)}
        order = _drawn(weights, draw) if session is None else _kept(route.model, weights, session)
        last = fallback if fallback and good(fallback) else None
        if order or last:
            return Choice((*order, *((last,) if last else ())), last)
    return Choice(())


def _drawn(weights: Mapping[str, float], draw: float) -> tuple[str, ...]:
    """An order in which each place goes to one of those left with the chance of its weight."""
    left = dict(weights)
    order: list[str] = []
    while left:
        name, point = _hit(left, draw * sum(left.values()))
        order.append(name)
        draw = min(point / left.pop(name), 1.0 - 2**-53)  # even in [0, 1) again
    return tuple(order)


def _hit(weights: Mapping[str, float], point: float) -> tuple[str, float]:
    """Whose weight holds the point, with the weights laid end to end, and how far into it."""
    for name, weight in weights.items():
        if point < weight:
            return name, point
        point -= weight
    return name, 0.0  # beyond the end, by the rounding of a sum


def _kept(route: str, weights: Mapping[str, float], session: str) -> tuple[str, ...]:
    """The session's own order of the servers, by weighted rendezvous hashing.

    Each server draws a time from an exponential distribution of its weight, the shortest wins.
    The times are the session's and the server's own, so a change of one weight moves sessions
    only from or to that server.
    """
    times = {
        name: -math.log(_point(route, session, name)) / weight for name, weight in weights.items()
    }
    return tuple(sorted(times, key=lambda name: (times[name], name)))


def _point(route: str, session: str, server: str) -> float:
    """A number in (0, 1] that is the same in every process, and even over the sessions."""
    text = "\0".join((route, server, session)).encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return (int.from_bytes(digest) + 0.5) / 2**64
