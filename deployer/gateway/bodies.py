"""Read the body of a request, within its limits of size and time."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import web

from deployer.gateway.refusals import Refusal, invalid

BODY_SECONDS = 60.0
"""What a client gets to send its body."""


async def read_body(request: web.BaseRequest, most: int) -> bytes:
    """The body of a request with JSON, of at most `most` bytes; raises Refusal."""
    if request.content_type != "application/json" or "Content-Type" not in request.headers:
        raise Refusal(
            415, "the body must be JSON: send the header Content-Type: application/json",
            reason="request", code="unsupported_media_type",
        )  # fmt: skip
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refusal(
            415, "a compressed body is not taken", reason="request", code="unsupported_media_type"
        )
    if (request.content_length or 0) > most:
        raise _too_large(most)
    if request.headers.get("Expect", "").lower() == "100-continue":
        with contextlib.suppress(ConnectionError):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # that was no part of the answer
    parts = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                parts += chunk
                if len(parts) > most:
                    raise _too_large(most)
    except TimeoutError:
        raise Refusal(
            408, f"the body did not come within {BODY_SECONDS:g} s", reason="request",
            code="request_timeout",
        ) from None  # fmt: skip
    except web.RequestPayloadError:
        raise invalid("the body does not come in the form that its headers say") from None
    return bytes(parts)


def _too_large(most: int) -> Refusal:
    return Refusal(
        413, f"the body is larger than {most >> 10} KiB", reason="size", code="request_too_large"
    )
