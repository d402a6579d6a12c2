"""Traces of requests, where the deployment names a collector for them (`gateway.traces`).

Without one, or for requests that are not sampled, nothing is recorded and nothing is loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from types import TracebackType

from deployer.errors import UsageError
from deployer.gateway.outcome import Outcome
from deployer.gateway.routing import Upstream

_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


class Trace:
    """One request, from its arrival to the end of its answer; this one records nothing."""

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def headers(self) -> dict[str, str]:
        """Headers for the engine, in place of the client's of the same names."""
        return {}

    def observe(self, outcome: Outcome, upstream: Upstream | None) -> None:
        """What became of the request at one server; the last one is how it ended."""


class Tracer:
    """Makes traces; this one makes none."""

    @staticmethod
    def of(url: str | None) -> Tracer:
        """The tracer that sends to an OTLP/HTTP collector, for example http://127.0.0.1:4318.

        Raises UsageError where a collector is named and OpenTelemetry is not installed.
        """
        if url is None:
            return Tracer()
        check_packages()
        from deployer.gateway.spans import SpanTracer

        return SpanTracer(url)

    def request(
        self, headers: Mapping[str, str], operation: str, model: str, streamed: bool
    ) -> Trace:
        """The trace of a request that was accepted; a context manager.

        `headers` are the client's: a W3C `traceparent` in them makes this a part of its trace.
        `operation` is `chat`, `text_completion` or `embeddings`, `model` the name the client gave.
        """
        return Trace()

    def close(self) -> None:
        """Send what is left, for a short while; nothing is recorded from then on."""


def check_packages() -> None:
    """Raise UsageError where traces cannot be sent for want of packages."""
    try:
        there = all(importlib.util.find_spec(name) is not None for name in _PACKAGES)
    except ModuleNotFoundError:
        there = False
    if not there:
        raise UsageError(
            "gateway.traces needs OpenTelemetry, which is not installed",
            "Install it: pip install 'deployer[traces]', or remove gateway.traces.",
        )
