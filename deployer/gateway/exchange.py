"""One request on its way: what was asked by whom, and what is known of it so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deployer.gateway.keys import Key
from deployer.gateway.outcome import Kind, Outcome
from deployer.gateway.requests import Asked
from deployer.gateway.tracing import Trace
from deployer.gateway.watch import StreamWatch
from deployer.recipe.deployment import Route

PASSED_ON = ("accept", "user-agent", "traceparent", "tracestate")
"""Headers of a client that an engine gets to see. Never Authorization or a cookie."""


@dataclass
class Exchange:
    """A request that was accepted. `size` is that of its body in bytes.

    `session` decides where a sticky route sends it, `draw` (evenly from [0, 1)) where it is sent
    else. `tokens` is what the key's limit is charged with at the end.
    """

    id: str
    key: Key
    asked: Asked
    route: Route
    session: str | None
    draw: float
    headers: Mapping[str, str]
    size: int
    trace: Trace = field(default_factory=Trace)
    tokens: int = 0

    def engine_headers(self) -> dict[str, str]:
        """All headers of the request to an engine."""
        passed = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
        own = {"content-type": "application/json", "x-request-id": self.id}
        return {**passed, **own, **self.trace.headers()}

    def charge(self, prompt: int | None, output: int | None, chunks: int = 0) -> None:
        """Charge tokens; what an engine did not count, as of a stream cut short, is estimated."""
        self.tokens += self.size // 4 if prompt is None else prompt
        self.tokens += chunks if output is None else output


@dataclass
class Attempt:
    """One try at one server; times in seconds of the caller's clock."""

    server: str
    started: float
    queued: float
    fallback: bool
    shadow: bool = False
    status: int = 0
    kind: Kind = "cancelled"
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    watch: StreamWatch | None = None

    def outcome(self, exchange: Exchange, ended: float) -> Outcome:
        """What became of it."""
        watch = self.watch
        began = watch is not None and watch.first is not None
        if watch is not None:
            self.prompt_tokens, self.output_tokens = watch.prompt_tokens, watch.output_tokens
        return Outcome(
            route=exchange.route.model,
            server=self.server,
            key=exchange.key.id,
            status=self.status,
            kind=self.kind,
            seconds=ended - self.started,
            queued=self.queued,
            ttft=watch.first - self.started if watch and watch.first is not None else None,
            tpot=watch.tpot if watch and began else None,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            streamed=watch is not None,
            shadow=self.shadow,
            fallback=self.fallback,
        )
