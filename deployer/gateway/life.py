"""The life of a gateway's process: listen, look after things, drain at SIGTERM, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp

from deployer.errors import UsageError
from deployer.gateway.app import App
from deployer.gateway.events import FILE, EventLog
from deployer.gateway.listening import Listener
from deployer.gateway.probing import run_probes
from deployer.gateway.routing import TableFile
from deployer.gateway.tls import Certificate
from deployer.gateway.upstreams import make_session
from deployer.recipe.deployment import Gateway

TICK = 0.2
"""Seconds between two looks at the table, the keys, the certificate, and those who wait."""
QUIET = 0.5
"""Seconds without a request after which draining is over: a client may be about to send one."""
CUT_SECONDS = 2.0
"""What requests that are cut get to tell their clients."""
FLUSH_SECONDS = 5.0
TABLE = "table.json"
_log = logging.getLogger(__name__)


async def run(folder: Path, listening: socket.socket | None) -> None:
    """Serve what the table of `folder` says until SIGTERM or SIGINT; a second one ends at once.

    `listening` is a bound socket; None binds the one that the table names. Raises UsageError
    where there is no table or the gateway cannot listen.
    """
    events = EventLog(folder / FILE)
    try:
        tables = TableFile(folder / TABLE, events.write)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder / TABLE} cannot be read: {error}", "A deployment's supervisor writes it."
        ) from error
    gateway = tables.table.gateway
    certificate = _certificate(gateway, events)
    listening = listening or _bind(gateway)
    async with make_session() as session:
        app = App(tables, session, events.write, time.monotonic)
        app.apply()
        app.keep_keys()
        listener = Listener(app.handle, app.replies, app.metrics.refused)
        server = await listener.listen(listening, certificate.context if certificate else None)
        events.write("gateway_started", port=listening.getsockname()[1])
        events.write("table_applied", generation=tables.table.generation)
        ending = asyncio.Event(), asyncio.Event()
        _await_signals(ending)
        async with _looked_after(app, session, certificate):
            await ending[0].wait()
            app.draining = app.replies.closing = True
            events.write("gateway_draining", running=len(app.running))
            server.close()
            await _drain(app, ending[1], tables.table.gateway.drain_timeout)
        await _end(app, listener)
        events.write("gateway_stopped")


def _certificate(gateway: Gateway, events: EventLog) -> Certificate | None:
    if gateway.certificate is None or gateway.private_key is None:
        return None
    return Certificate(Path(gateway.certificate), Path(gateway.private_key), events.write)


def _bind(gateway: Gateway) -> socket.socket:
    try:
        return socket.create_server(
            (gateway.host, gateway.port),
            family=socket.AF_INET6 if ":" in gateway.host else socket.AF_INET,
        )
    except OSError as error:
        raise UsageError(
            f"cannot listen on {gateway.host}:{gateway.port}: {error.strerror or error}",
            "Set gateway.port to another one, or stop who has it.",
        ) from error


def _await_signals(ending: tuple[asyncio.Event, asyncio.Event]) -> None:
    """Set the first event at the first signal, the second one at the second."""
    loop = asyncio.get_running_loop()

    def told() -> None:
        (ending[1] if ending[0].is_set() else ending[0]).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)


@contextlib.asynccontextmanager
async def _looked_after(
    app: App, session: aiohttp.ClientSession, certificate: Certificate | None
) -> AsyncIterator[None]:
    """Everything that goes on beside the requests, for as long as the context."""
    get = app.tables.get
    tasks = [
        asyncio.create_task(_keep_up(lambda: _look(app, certificate))),
        asyncio.create_task(_keep_up(lambda: app.scraper.run(get))),
        asyncio.create_task(
            _keep_up(lambda: run_probes(app.judges, get, session, app.hold, app.observe))
        ),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_up(work: Callable[[], Awaitable[None]]) -> None:
    """Do it for ever: a fault in one part must not end the gateway, or this part of it."""
    while True:
        try:
            await work()
        except Exception:
            _log.exception("a part of the gateway failed and is begun again")
        await asyncio.sleep(1.0)


async def _look(app: App, certificate: Certificate | None) -> None:
    """Look at the files, at those who wait and at those who hang, every `TICK`."""
    generation = app.tables.table.generation
    keys = app.keys.ids
    mood = app.finder.mood()
    while True:
        before = app.clock()
        await asyncio.sleep(TICK)
        app.metrics.lag(max(0.0, app.clock() - before - TICK))
        if app.tables.check():
            app.apply()
            if app.tables.table.generation != generation:
                generation = app.tables.table.generation
                app.on_event("table_applied", generation=generation)
        app.keys.check()
        if app.keys.ids != keys:
            keys = app.keys.ids
            app.keep_keys()
        if certificate is not None:
            _check_certificate(certificate, app.tables.table.gateway)
        if app.finder.mood() != mood:
            mood = app.finder.mood()
            app.admission.poke()
        app.replies.cut_stalled()


def _check_certificate(certificate: Certificate, gateway: Gateway) -> None:
    """Take a certificate that is new, or that the table names anew."""
    if gateway.certificate is not None and gateway.private_key is not None:
        certificate.use(Path(gateway.certificate), Path(gateway.private_key))
    certificate.check()


async def _drain(app: App, hurry: asyncio.Event, timeout: float) -> None:
    """Wait until nothing runs and nobody comes any more, or the time is over, or hurried."""
    until = app.clock() + timeout
    quiet_since = app.clock()
    while app.clock() < until and not hurry.is_set():
        if app.running:
            quiet_since = app.clock()
        elif app.clock() - quiet_since >= QUIET:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hurry.wait(), 0.05)


async def _end(app: App, listener: Listener) -> None:
    """End what still runs, each with an error its client can see; then close all connections."""
    app.proxy.cutting = True
    app.shadows.cancel()
    left = list(app.running)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=CUT_SECONDS)
    transports = [
        connection.transport for connection in listener.connections if connection.transport
    ]
    await listener.shutdown(CUT_SECONDS)
    until = app.clock() + FLUSH_SECONDS
    while any(_unsent(transport) for transport in transports) and app.clock() < until:
        await asyncio.sleep(0.02)
    await asyncio.to_thread(app.tracer.close)


def _unsent(transport: asyncio.Transport) -> bool:
    """Whether bytes of a connection that closes are still to be sent."""
    try:
        return transport.get_write_buffer_size() > 0
    except (AttributeError, RuntimeError, OSError):
        return False
