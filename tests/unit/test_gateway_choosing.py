"""The choice of a server: by weight, by session, and what is left when servers are ill."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pytest
from gateway_samples import route, table, upstream
from hypothesis import given
from hypothesis import strategies as st

from deployer.gateway.choosing import Choice, choose

WEIGHTS = st.dictionaries(
    st.sampled_from("abcdefgh"), st.floats(0.01, 100.0), min_size=1, max_size=6
)


def everybody(name: str) -> bool:
    return True


def only(*names: str) -> Callable[[str], bool]:
    return lambda name: name in names


def order(
    to: dict[str, float],
    fit: Callable[[str], bool] = everybody,
    session: str | None = None,
    draw: float = 0.0,
    there: Iterable[str] = "abcdefgh",
    usable: Callable[[str], bool] | None = None,
    **changes: object,
) -> Choice:
    whole, one = made(tuple(to.items()), tuple(there), tuple(changes.items()))
    return choose(whole, one, fit, session, draw, usable or only())


@cache
def made(to: tuple[Any, ...], there: tuple[str, ...], changes: tuple[Any, ...]) -> Any:
    one = route(dict(to), **dict(changes))
    return table(one, upstreams=tuple(map(upstream, there))), one


@given(
    to=WEIGHTS, draw=st.floats(0, 1, exclude_max=True), session=st.none() | st.text("ab\0é\udcff")
)
def test_every_fit_server_comes_once(
    to: dict[str, float], draw: float, session: str | None
) -> None:
    found = order(to, draw=draw, session=session)
    assert sorted(found.servers) == sorted(to)
    assert found.fallback is None


def test_the_first_is_drawn_exactly_by_weight() -> None:
    to = {"a": 1.0, "b": 3.0, "c": 0.0}
    first = [order(to, draw=(n + 0.5) / 100).servers[0] for n in range(100)]
    assert Counter(first) == {"a": 25, "b": 75}


def test_the_second_is_drawn_by_weight_among_the_others() -> None:
    to = {"a": 1.0, "b": 1.0, "c": 2.0}
    orders = [order(to, draw=(n + 0.5) / 600).servers for n in range(600)]
    after_a = Counter(second for first, second, _ in orders if first == "a")
    assert after_a == pytest.approx({"b": 50, "c": 100}, abs=2)


def test_a_server_of_weight_0_gets_nothing_even_if_it_is_alone() -> None:
    to = {"a": 1.0, "canary": 0.0}
    found = order(to, fit=only("canary"), session="s", there=("a", "canary"))
    assert found.servers == ()


def test_a_server_that_is_not_in_the_table_gets_nothing() -> None:
    assert order({"a": 1.0, "b": 1.0}, there="b").servers == ("b",)


def test_a_server_that_retires_gets_nothing() -> None:
    one = route({"a": 1.0, "b": 1.0})
    upstreams = (upstream("a", retiring=True), upstream("b"))
    assert choose(table(one, upstreams=upstreams), one, everybody, None, 0.0, only()).servers == (
        "b",
    )


def test_the_fallback_is_last_and_alone_where_the_others_are_ill() -> None:
    to = {"a": 1.0, "b": 1.0}
    assert order(to, fallback="f", there="abf", draw=0.9) == Choice(("b", "a", "f"), "f")
    assert order(to, fit=only("f"), fallback="f", there="abf") == Choice(("f",), "f")
    assert order(to, fit=only("a"), fallback="f", there="abf") == Choice(("a",))
    assert order(to, fit=only(), fallback="f", there="abf") == Choice(())
    assert order(to, fallback="f", there="ab") == Choice(("a", "b"))


def test_where_nobody_is_fit_those_serve_that_answer_at_all() -> None:
    to = {"a": 1.0, "b": 1.0}
    slow = only("b", "f")
    assert order(to, only(), usable=slow) == Choice(("b",))
    assert order(to, only(), usable=slow, fallback="f", there="abf") == Choice(("b", "f"), "f")
    assert order(to, only("f"), usable=slow, fallback="f", there="abf") == Choice(("f",), "f")
    assert order(to, only(), usable=only()) == Choice(())


@given(to=WEIGHTS, session=st.text("ab\0é\udcff"), draw=st.floats(0, 1, exclude_max=True))
def test_a_session_stays_whatever_is_drawn(to: dict[str, float], session: str, draw: float) -> None:
    assert order(to, session=session, draw=draw) == order(to, session=session, draw=0.0)


def test_sessions_keep_their_server_in_every_process() -> None:
    to = {"a": 1.0, "b": 2.0, "c": 1.0}
    kept = [order(to, session=f"user-{n}").servers[0] for n in range(12)]
    assert "".join(kept) == KEPT


KEPT = "cbacbabbbabb"


@given(to=WEIGHTS, changed=st.sampled_from("abcdefgh"), weight=st.floats(0.01, 100.0))
def test_a_change_of_one_weight_moves_sessions_only_from_or_to_that_server(
    to: dict[str, float], changed: str, weight: float
) -> None:
    for number in range(6):
        before = order(to, session=str(number)).servers[0]
        after = order({**to, changed: weight}, session=str(number)).servers[0]
        if before != after:
            grew = weight > to.get(changed, 0.0)
            assert (after if grew else before) == changed


def test_sessions_are_spread_by_weight_and_few_move() -> None:
    number = 600
    before = [order({"a": 9.0, "b": 1.0}, session=f"{n}").servers[0] for n in range(number)]
    after = [order({"a": 8.0, "b": 2.0}, session=f"{n}").servers[0] for n in range(number)]
    assert before.count("b") / number == pytest.approx(0.1, abs=0.03)
    assert after.count("b") / number == pytest.approx(0.2, abs=0.03)
    moved = sum(one != other for one, other in zip(before, after, strict=True)) / number
    assert moved == pytest.approx(0.1, abs=0.03)


def test_a_session_comes_back_to_its_server() -> None:
    to = {"a": 1.0, "b": 1.0, "c": 1.0}
    sessions = [str(random.Random(n).random()) for n in range(50)]
    for session in sessions:
        whole = order(to, session=session).servers
        without = order(to, session=session, fit=lambda name, ill=whole[0]: name != ill).servers
        assert without == whole[1:]


def test_routes_spread_sessions_each_in_its_own_way() -> None:
    to = {"a": 1.0, "b": 1.0}
    chat = [order(to, session=str(n)).servers[0] for n in range(100)]
    other = [order(to, session=str(n), model="other").servers[0] for n in range(100)]
    assert chat != other
