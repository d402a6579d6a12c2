"""The engines' own figures, read every few seconds and shown again on the gateway's /metrics.

Each family of an engine is passed on with the label `deployer_server`; what all engines tell
stands beside that under one name, for example `deployer_engine_running`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp

from deployer.engine_metrics import EngineMetrics, read_engine_metrics
from deployer.gateway.exposition import Family, described, escaped, families, joined
from deployer.gateway.routing import Table, Upstream

EVERY = 5.0
STALE = 15.0
"""Seconds between two readings, and after which one is too old to be shown."""
TIMEOUT = aiohttp.ClientTimeout(total=3.0, connect=1.0)
LARGEST = 4 << 20
"""Bytes of one engine's text; a larger one is not read."""
LABEL = "deployer_server"
RESERVED = ("deployer_", "process_", "python_")
"""Beginnings of names that are the gateway's own on this page; an engine's are left out."""
UNIFIED = {
    "deployer_engine_running": ("running", "gauge", "Requests the engine decodes."),
    "deployer_engine_waiting": ("waiting", "gauge", "Requests that wait within the engine."),
    "deployer_engine_prompt_tokens_total": (
        "prompt_tokens", "counter", "Prompt tokens the engine has read since its start.",
    ),
    "deployer_engine_output_tokens_total": (
        "output_tokens", "counter", "Tokens the engine has made since its start.",
    ),
    "deployer_engine_cache_used_ratio": (
        "cache_used", "gauge", "Share of the key-value cache in use, 0 to 1.",
    ),
}  # fmt: skip
"""Name on the page -> field of `EngineMetrics`, type, help; all with the label `server`."""
DROPPED = "deployer_engine_lines_dropped_total"


@dataclass(frozen=True)
class Reading:
    """What one engine told, and when (seconds of the clock)."""

    at: float
    families: dict[str, Family]
    unified: EngineMetrics
    wrong: int


class Scraper:
    """Reads the engines of a table. `clock` gives monotonic seconds."""

    def __init__(
        self, session: aiohttp.ClientSession, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._clock = clock
        self._readings: dict[str, Reading] = {}
        self._dropped: dict[str, int] = {}

    async def run(self, get_table: Callable[[], Table]) -> None:
        """Read all engines, again and again, until it is cancelled."""
        while True:
            await self.scrape(get_table())
            await asyncio.sleep(EVERY)

    async def scrape(self, table: Table) -> None:
        """Read every engine once, all at the same time; one that does not answer is left."""
        asked = [one for one in table.upstreams if one.metrics and not one.retiring]
        names = {one.name for one in asked}
        for gone in self._dropped.keys() - names:
            del self._dropped[gone]
            self._readings.pop(gone, None)
        await asyncio.gather(*(self._read(one) for one in asked))

    def render(self) -> bytes:
        """What stands on the page; nothing of an engine that has not answered for a while."""
        now = self._clock()
        fresh = {name: r for name, r in self._readings.items() if now - r.at <= STALE}
        lines: list[str] = []
        for name, (attribute, kind, told) in UNIFIED.items():
            values = {
                server: value
                for server, reading in fresh.items()
                if (value := getattr(reading.unified, attribute)) is not None
            }
            lines += _family(name, kind, told, values)
        told = "Lines of engines' pages that are not in the format, and pages that are too large."
        lines += _family(DROPPED, "counter", told, self._dropped)
        parts = ((server, one) for server, r in fresh.items() for one in r.families.values())
        passed = joined(parts, LABEL)
        return "".join(f"{line}\n" for line in (*lines, *passed)).encode()

    async def _read(self, upstream: Upstream) -> None:
        self._dropped.setdefault(upstream.name, 0)
        try:
            body = await self._page(f"{upstream.url}{upstream.metrics}")
        except (aiohttp.ClientError, TimeoutError, OSError):
            return
        if body is None:
            return
        if len(body) > LARGEST:
            self._dropped[upstream.name] += 1
            return
        # A large page takes milliseconds, in which no stream of the event loop would go on.
        reading = await asyncio.to_thread(take_apart, body, self._clock())
        self._readings[upstream.name] = reading
        self._dropped[upstream.name] += reading.wrong

    async def _page(self, url: str) -> bytes | None:
        """A page's body, not much more than `LARGEST` bytes of it; None where there is none."""
        headers = {"Accept": "text/plain", "Accept-Encoding": "identity"}
        async with self._session.get(
            url, headers=headers, timeout=TIMEOUT, allow_redirects=False
        ) as answer:
            if answer.status != 200:
                return None
            body = bytearray()
            async for chunk in answer.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > LARGEST:
                    break
            return bytes(body)


def take_apart(body: bytes, at: float) -> Reading:
    """An engine's page as a reading."""
    text = body.decode("utf-8", "replace")
    found, wrong = families(text)
    kept = {name: one for name, one in found.items() if not name.startswith(RESERVED)}
    return Reading(at, kept, read_engine_metrics(text), wrong)


def _family(name: str, kind: str, told: str, values: Mapping[str, float]) -> list[str]:
    """The lines of a family of our own with the label `server`; nothing without a value."""
    if not values:
        return []
    samples = [f'{name}{{server="{escaped(s)}"}} {float(v)!r}' for s, v in values.items()]
    return [*described(name, kind, told), *samples]
