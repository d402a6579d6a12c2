"""Asks the servers themselves: one token, and the questions of a route with known answers.

Probes wait for a slot like requests do, but not for long: a server that is busy with requests is
not ill, so its probe is put off. They are temperature 0 and go past the gateway's own door.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import aiohttp

from deployer.gateway.judging import Judges, Probe
from deployer.gateway.matching import contains
from deployer.gateway.outcome import Kind, Outcome
from deployer.gateway.routing import Table, Upstream
from deployer.gateway.standing import Probed

TICK = 0.5
"""Seconds between two looks at what is due."""
AT_ONCE = 8
"""Servers that are probed at the same time."""
ANSWER = aiohttp.ClientTimeout(total=60.0, connect=5.0)
"""Until an answer must be there."""
LARGEST = 256 << 10
"""Bytes of an answer that are read."""
WHO = "(probe)"
"""The key under which probes are told of: no name that a key can have."""

Hold = Callable[[str], AbstractAsyncContextManager[bool]]
"""Holds a slot of a server; False where none came free within some seconds."""


class _Busy(Exception):
    """The server has no slot for a probe now."""


class _Failed(Exception):
    """The server gave no answer; says which kind of outcome that is."""

    def __init__(self, kind: Kind, status: int = 502) -> None:
        super().__init__(kind)
        self.kind = kind
        self.status = status


@dataclass(frozen=True)
class Prober:
    """Makes probes. `hold` gives slots, `observe` takes what became of each probe."""

    session: aiohttp.ClientSession
    hold: Hold
    observe: Callable[[Outcome], None]

    async def probe(self, probe: Probe, upstream: Upstream) -> Probed | None:
        """Probe a server once; None where it has no slot for it."""
        begun, ttft = time.monotonic(), None
        kind: Kind = "ok"
        status, right = 200, 0
        questions = probe.route.quality.questions if probe.route.quality else ()
        try:
            ttft = await self._one_token(upstream)
            right = await self._right_answers(probe, upstream)
        except _Busy:
            return None
        except _Failed as failure:
            kind, status = failure.kind, failure.status
        seconds = time.monotonic() - begun
        self.observe(
            Outcome(
                probe.route.model, probe.server, WHO, status, kind, seconds, ttft=ttft, probe=True
            )
        )
        if kind != "ok":  # half a round of questions says nothing of the answers
            return Probed()
        return Probed(ttft, len(questions), right)

    async def _one_token(self, upstream: Upstream) -> float:
        """Seconds until one token was there."""
        async with self.hold(upstream.name) as held:
            if not held:
                raise _Busy
            begun = time.monotonic()
            answer = await self._ask(upstream, "Hello", 1)
            usage = answer.get("usage")
            if not isinstance(usage, dict) or not usage.get("completion_tokens"):
                raise _Failed("upstream_error")
            return time.monotonic() - begun

    async def _right_answers(self, probe: Probe, upstream: Upstream) -> int:
        quality, right = probe.route.quality, 0
        if quality is None:
            return 0
        for question in quality.questions:
            async with self.hold(upstream.name) as held:
                if not held:
                    raise _Busy
                answer = await self._ask(upstream, question.ask, quality.max_tokens)
            right += contains(question.expect, text_of(answer))
        return right

    async def _ask(self, upstream: Upstream, text: str, max_tokens: int) -> dict[str, Any]:
        request = {
            "model": upstream.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        url = f"{upstream.url}/v1/chat/completions"
        headers = {"Accept-Encoding": "identity"}
        try:
            async with self.session.post(
                url, json=request, headers=headers, timeout=ANSWER, allow_redirects=False
            ) as response:
                if response.status in (429, 503):
                    raise _Busy
                if response.status != 200:
                    raise _Failed("upstream_error", response.status)
                return _object(await _read(response))
        except TimeoutError as error:
            raise _Failed("timeout", 504) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Failed("upstream_error") from error


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > LARGEST:
            raise _Failed("upstream_error", response.status)
    return bytes(body)


def _object(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Failed("upstream_error", 200) from error
    if not isinstance(answer, dict):
        raise _Failed("upstream_error", 200)
    return answer


def text_of(answer: dict[str, Any]) -> str:
    """The text of a chat completion's first choice, "" where it has none."""
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return ""
    return content if isinstance(content, str) else ""


async def run_probes(
    judges: Judges,
    get_table: Callable[[], Table],
    session: aiohttp.ClientSession,
    hold: Hold,
    observe: Callable[[Outcome], None],
) -> None:
    """Review the judges, and make the probes that are due, until cancelled."""
    prober, places = Prober(session, hold, observe), asyncio.Semaphore(AT_ONCE)

    async def one(probe: Probe) -> None:
        found: Probed | None = None
        try:
            async with places:
                upstream = get_table().upstream(probe.server)
                if upstream is not None and upstream.instance == probe.instance:
                    found = await prober.probe(probe, upstream)
        finally:
            judges.probed(probe, found)

    async with asyncio.TaskGroup() as group:
        while True:
            judges.review()
            for probe in judges.due():
                group.create_task(one(probe))
            await asyncio.sleep(TICK)
