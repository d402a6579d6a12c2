"""A span for each request, sent to an OpenTelemetry collector in the background.

The attributes are those of the semantic conventions for generative AI, and a few of our own that
begin with `deployer.`. No span holds a prompt, an answer or a key. Spans wait in a queue of
fixed size for a thread that sends them; where the collector is slow or dead they are dropped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from deployer import __version__
from deployer.gateway.outcome import Outcome
from deployer.gateway.routing import Upstream
from deployer.gateway.tracing import Trace, Tracer

SERVICE = "deployer-gateway"
PATH = "/v1/traces"
"""Where a collector takes spans, unless the URL names another path."""
QUEUE = 2048
BATCH = 512
EVERY_MS = 2000
SEND_SECONDS = 5.0
CLOSE_SECONDS = 2.0
"""How long the end of the gateway waits for the last spans to be sent."""
_FAILED = frozenset({"upstream_error", "truncated", "timeout"})
"""Outcomes that are our side's fault, so that the span is marked as an error."""
_CARRIED = ("traceparent", "tracestate")
_PROPAGATOR = TraceContextTextMapPropagator()
_log = logging.getLogger(__name__)


class SpanTracer(Tracer):
    """Makes a span for each request, and sends them to one collector."""

    def __init__(self, url: str) -> None:
        # Its own words for a dead collector are a line or more for each attempt.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        exporter = _Telling(OTLPSpanExporter(endpoint=_endpoint(url), timeout=SEND_SECONDS), url)
        resource = Resource.create({"service.name": SERVICE, "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=QUEUE,
                schedule_delay_millis=EVERY_MS,
                max_export_batch_size=BATCH,
            )
        )
        self._tracer = self._provider.get_tracer("deployer.gateway", __version__)

    def request(
        self, headers: Mapping[str, str], operation: str, model: str, streamed: bool
    ) -> Trace:
        carried = {name: headers[name] for name in _CARRIED if name in headers}
        span = self._tracer.start_span(
            f"{operation} {model}",
            context=_PROPAGATOR.extract(carried),
            kind=SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.request.model": model,
                "gen_ai.request.stream": streamed,
            },
        )
        return SpanTrace(span)

    def close(self) -> None:
        # A dead collector would hold the end up for as long as its retries take.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class SpanTrace(Trace):
    """One request's span. It ends with the context."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._last: Outcome | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and self._last is None:
            self._span.set_attribute("error.type", kind.__name__)
        elif self._last is not None and self._last.kind in _FAILED:
            self._span.set_status(Status(StatusCode.ERROR, self._last.kind))
        self._span.end()

    def headers(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, context=trace.set_span_in_context(self._span))
        return carrier

    def observe(self, outcome: Outcome, upstream: Upstream | None) -> None:
        if self._last is not None:  # a server before this one did not answer
            self._span.add_event(
                "attempt_failed",
                {"deployer.server": self._last.server, "error.type": self._last.kind},
            )
        self._last = outcome
        if not self._span.is_recording():
            return
        self._span.set_attributes({**_attributes(outcome), **_place(upstream)})
        if outcome.ttft is not None:
            ago = max(0.0, outcome.seconds - outcome.ttft)
            self._span.add_event(
                "first_token",
                {"gen_ai.response.time_to_first_chunk": outcome.ttft},
                timestamp=time.time_ns() - int(ago * 1e9),
            )


class _Telling(SpanExporter):
    """Sends spans, and says once when that begins to fail, and once when it works again."""

    def __init__(self, exporter: SpanExporter, url: str) -> None:
        self._exporter = exporter
        self._place = _endpoint(url).partition("?")[0]
        self._fails = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        fails = result is not SpanExportResult.SUCCESS
        if fails != self._fails:
            self._fails = fails
            told = "cannot be sent to %s; they are dropped" if fails else "are sent to %s again"
            _log.warning(f"traces {told}", self._place)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _endpoint(url: str) -> str:
    """The URL spans are posted to."""
    return url.rstrip("/") + PATH if urlsplit(url).path in ("", "/") else url


def _attributes(outcome: Outcome) -> dict[str, str | int | float | bool]:
    """What is told of a request; figures that are not known are left out."""
    known: dict[str, str | int | float | bool | None] = {
        "gen_ai.usage.input_tokens": outcome.prompt_tokens,
        "gen_ai.usage.output_tokens": outcome.output_tokens,
        "gen_ai.response.time_to_first_chunk": outcome.ttft,
        "http.response.status_code": outcome.status or None,
        "error.type": None if outcome.kind == "ok" else outcome.kind,
        "deployer.server": outcome.server or None,
        "deployer.queue_seconds": outcome.queued,
        "deployer.fallback": outcome.fallback,
    }
    return {name: value for name, value in known.items() if value is not None}


def _place(upstream: Upstream | None) -> dict[str, str | int | float | bool]:
    if upstream is None:
        return {}
    parts = urlsplit(upstream.url)
    return {
        "gen_ai.provider.name": upstream.engine,
        "gen_ai.response.model": upstream.model,
        "server.address": parts.hostname or "",
        "server.port": parts.port or 80,
        "deployer.bundle": upstream.bundle,
    }
