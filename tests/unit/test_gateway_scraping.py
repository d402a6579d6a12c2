"""The scraper: whose figures stand on the page, for how long, under which names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from deployer.engine_metrics import EngineMetrics
from deployer.gateway import scraping
from deployer.gateway.routing import Table, Upstream
from deployer.gateway.scraping import Scraper
from deployer.recipe.deployment import Gateway, Route

LLAMA = """# HELP llamacpp:tokens_predicted_total Number of generation tokens processed.
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 42
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 1
deployer_server_up 7
what is this
"""


def upstream(name: str, url: str, **changes: object) -> Upstream:
    fields: dict[str, object] = {
        "name": name, "instance": f"{name}.1", "url": url, "model": "m", "engine": "llama.cpp",
        "bundle": "b", "digest": "d", "state": "ready", "slots": 2, "context": 512, **changes,
    }  # fmt: skip
    return Upstream.model_validate(fields)


def table(*upstreams: Upstream) -> Table:
    route = Route.model_validate({"model": "chat", "to": {"q4": 1}}, strict=False)
    return Table(
        deployment="d", generation=1, gateway=Gateway(), routes=(route,), upstreams=upstreams
    )


class Engine:
    """An engine's /metrics, and nothing else."""

    def __init__(self) -> None:
        self.text, self.status = LLAMA, 200

    async def answer(self, _request: web.Request) -> web.Response:
        return web.Response(text=self.text, status=self.status)


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/metrics", engine.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def scraped(check: Callable[[Scraper, Engine, str, list[float]], Awaitable[None]]) -> None:
    """Run a check with a scraper, an engine, its URL and the clock's time in a list."""

    async def run() -> None:
        engine, now = Engine(), [0.0]
        async with serving(engine) as url, aiohttp.ClientSession() as session:
            await check(Scraper(session, clock=lambda: now[0]), engine, url, now)

    asyncio.run(run())


def lines(scraper: Scraper) -> list[str]:
    return scraper.render().decode().splitlines()


def test_figures_are_passed_on_with_the_server_and_shown_under_one_name() -> None:
    async def check(scraper: Scraper, _engine: Engine, url: str, _now: list[float]) -> None:
        await scraper.scrape(table(upstream("q4", url), upstream("q8", url)))
        found = lines(scraper)
        assert 'llamacpp:tokens_predicted_total{deployer_server="q4"} 42' in found
        assert 'llamacpp:tokens_predicted_total{deployer_server="q8"} 42' in found
        assert found.count("# TYPE llamacpp:tokens_predicted_total counter") == 1
        assert 'deployer_engine_output_tokens_total{server="q4"} 42.0' in found
        assert 'deployer_engine_lines_dropped_total{server="q4"} 1.0' in found
        assert not [line for line in found if "process_" in line or "deployer_server_up" in line]

    scraped(check)


def test_an_engine_that_does_not_answer_is_shown_for_a_while() -> None:
    async def check(scraper: Scraper, engine: Engine, url: str, now: list[float]) -> None:
        await scraper.scrape(table(upstream("q4", url)))
        engine.status = 500
        now[0] = scraping.STALE
        await scraper.scrape(table(upstream("q4", url)))
        assert any("tokens_predicted" in line for line in lines(scraper))
        now[0] = scraping.STALE + 0.1
        assert not [line for line in lines(scraper) if "tokens_predicted" in line]
        assert 'deployer_engine_lines_dropped_total{server="q4"} 1.0' in lines(scraper)

    scraped(check)


def test_who_left_the_table_or_is_on_the_way_out_is_not_shown() -> None:
    async def check(scraper: Scraper, _engine: Engine, url: str, _now: list[float]) -> None:
        await scraper.scrape(table(upstream("q4", url)))
        await scraper.scrape(
            table(upstream("q4", url, retiring=True), upstream("q8", url, metrics=None))
        )
        assert lines(scraper) == []

    scraped(check)


def test_a_page_without_end_is_not_read() -> None:
    async def check(scraper: Scraper, engine: Engine, url: str, _now: list[float]) -> None:
        engine.text = "a 1\n" * (scraping.LARGEST // 4 + 1)
        await scraper.scrape(table(upstream("q4", url), upstream("gone", "http://127.0.0.1:1")))
        assert lines(scraper)[2:] == [
            'deployer_engine_lines_dropped_total{server="q4"} 1.0',
            'deployer_engine_lines_dropped_total{server="gone"} 0.0',
        ]

    scraped(check)


def test_the_unified_names_are_fields_of_what_is_read() -> None:
    assert {field for field, _, _ in scraping.UNIFIED.values()} <= set(vars(EngineMetrics()))
