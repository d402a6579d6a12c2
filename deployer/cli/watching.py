"""`deployer top`: what the servers and deployments do right now, on the terminal."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from deployer.cli.options import json_option, with_options
from deployer.cli.output import emit
from deployer.home import default_home

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from deployer.workflow.watched import DeploymentRow, Look, RouteRow, ServerRow, View

SERVER_COLUMNS = (
    "server", "state", "uptime", "restarts", "running", "waiting", "prompt tok/s", "output tok/s",
    "cache", "memory", "cores",
)  # fmt: skip
ROUTE_COLUMNS = (
    "route", "requests/s", "errors/s", "TTFT p50", "TTFT p95", "waiting", "fallback",
)  # fmt: skip
_WORDS = frozenset({"time", "event"})


@click.command()
@click.argument("name", required=False)
@click.option(
    "--interval", default=2.0, show_default=True, metavar="SECONDS",
    type=click.FloatRange(0.2, 3600), help="Time between two readings.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Print the figures of one interval, and end.")
@with_options(json_option)
def top(name: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Show what servers and deployments do, again and again; q or Ctrl-C ends it.

    NAME is a server or a deployment; default: all. What was not measured stays blank. With --json,
    or where standard output is no terminal, it is as with --once.
    """
    from deployer.workflow import watching
    from deployer.workflow.watched import view

    home = default_home()
    before = watching.look(home, name)
    if once or as_json or not sys.stdout.isatty():
        time.sleep(interval)
        found = view(before, watching.look(home, name))
        if as_json:
            emit(found.as_json())
        else:
            _print(found)
        return
    _watch(before, lambda: watching.look(home, name), interval)


def _print(found: View) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    Console(highlight=False, markup=False, emoji=False, width=width).print(*shown(found), sep="\n")


def _watch(first: Look, look: Callable[[], Look], interval: float) -> None:
    """Draw again after each interval, until somebody presses q."""
    from rich.console import Console, Group
    from rich.live import Live

    from deployer.workflow.watched import view

    console = Console(highlight=False, markup=False, emoji=False)
    drawn = view(None, first)
    with _keys() as pressed, Live(
        Group(*shown(drawn)), console=console, screen=True, auto_refresh=False
    ) as live:  # fmt: skip
        before = first
        try:
            while not pressed(interval):
                now = look()
                live.update(Group(*shown(view(before, now))), refresh=True)
                before = now
        except KeyboardInterrupt:
            return


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """A function that waits so many seconds and tells whether q was pressed meanwhile."""
    if not sys.stdin.isatty():
        yield _wait
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([descriptor], [], [], left)[0]:
                typed = os.read(descriptor, 32)
                if not typed or b"q" in typed.lower():
                    return True
        return False

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def shown(found: View) -> list[RenderableType]:
    """What is drawn: the deployments with their routes and last events, then the servers."""
    parts: list[RenderableType] = []
    for one in found.deployments:
        parts += [*_heading(one), _routes(one.routes)]
        parts += [_event(event) for event in one.events]
        parts.append("")
    if found.servers:
        parts.append(_servers(found.servers))
    if not parts:
        parts.append("No server runs. Start one: deployer serve --detach")
    parts.append("" if found.seconds is None else f"rates over {found.seconds:.1f} s")
    return parts


def _heading(one: DeploymentRow) -> list[str]:
    words = [
        f"{one.name}: {one.state} at {one.endpoint}",
        f"generation {one.generation}",
        f"up {seconds(one.uptime_s)}" if one.uptime_s is not None else "",
        f"gateway started again {one.gateway_restarts} times" if one.gateway_restarts else "",
        f"{number(one.refused_s)} refused with 429/s" if one.refused_s else "",
        f"{number(one.open_streams)} open streams" if one.open_streams is not None else "",
        f"gateway {size(one.memory_bytes)}, {number(one.cores)} cores" if one.cores else "",
        one.note,
    ]
    lines = [", ".join(word for word in words if word)]
    if one.unfit:
        lines.append(f"unfit: {', '.join(one.unfit)}")
    return lines


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position > 1 else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _routes(rows: tuple[RouteRow, ...]) -> Table:
    return _table(
        ROUTE_COLUMNS,
        [
            (
                row.route, number(row.requests_s), number(row.errors_s), seconds(row.ttft_p50_s),
                seconds(row.ttft_p95_s), number(row.waiting),
                "" if row.fallback is None else "ON" if row.fallback else "off",
            )
            for row in rows
        ],
    )  # fmt: skip


def _servers(rows: tuple[ServerRow, ...]) -> Table:
    return _table(
        SERVER_COLUMNS,
        [
            (
                row.name, row.state, seconds(row.uptime_s), str(row.restarts), number(row.running),
                number(row.waiting), number(row.prompt_tokens_s), number(row.output_tokens_s),
                "" if row.cache_used is None else f"{100 * row.cache_used:.0f} %",
                size(row.memory_bytes), number(row.cores),
            )
            for row in rows
        ],
    )  # fmt: skip


def _event(event: Mapping[str, Any]) -> str:
    told = " ".join(f"{key}={value}" for key, value in event.items() if key not in _WORDS)
    return f"  {str(event.get('time', ''))[11:19]} {event['event']} {told}".rstrip()[:200]


def number(value: float | None) -> str:
    """Whole numbers as they are, others with two digits that say something."""
    if value is None:
        return ""
    return f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    """A duration in the unit that fits: 85 ms, 2.4 s, 12 min, 3.1 h, 2.0 d."""
    if value is None:
        return ""
    for limit, factor, form in (
        (1.0, 1e3, "{:.0f} ms"), (120.0, 1.0, "{:.3g} s"), (7200.0, 1 / 60, "{:.0f} min"),
        (172_800.0, 1 / 3600, "{:.1f} h"),
    ):  # fmt: skip
        if value < limit:
            return form.format(value * factor)
    return f"{value / 86_400:.1f} d"


def size(value: float | None) -> str:
    """Bytes, in MB or GB."""
    if value is None:
        return ""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
