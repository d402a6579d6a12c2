"""What became of one request: measured by the proxy, counted by metrics, limits and judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["ok", "client_error", "busy", "upstream_error", "truncated", "timeout", "cancelled"]
"""`ok`: answered whole. `client_error`: refused, by us or the engine, as wrong. `busy`: refused for
want of a slot. `upstream_error`: no answer, a 5xx or an error within the stream. `truncated`: the
stream ended without its end mark. `timeout`: no byte for too long. `cancelled`: the client left."""


@dataclass(frozen=True)
class Outcome:
    """One request at one server (a retried request has one for each server it reached).

    Times are in seconds; `ttft` and `tpot` are as in docs/loadtest.md, None where the answer was
    not streamed or has no token. `queued` is the time it waited for a slot; `seconds` and `ttft`
    count from when it had one. Tokens are the
    engine's own counts, None where it told none. `server` is "" where none was reached.
    """

    route: str
    server: str
    key: str
    status: int
    kind: Kind
    seconds: float
    queued: float = 0.0
    ttft: float | None = None
    tpot: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    streamed: bool = False
    shadow: bool = False
    fallback: bool = False
    probe: bool = False
