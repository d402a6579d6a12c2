"""Requests that get an error instead of an answer, and the error as OpenAI's API spells it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from deployer.gateway.outcome import Kind

INVALID, DENIED, LIMITED, BROKEN = (
    "invalid_request_error", "authentication_error", "rate_limit_error", "server_error",
)  # fmt: skip
"""`type` of an error object."""


class Refusal(Exception):
    """The answer to a request that the gateway does not serve.

    `reason` is the label under which it is counted, "" where a server has answered and the
    request is counted there. `retry_after` is in whole seconds, None where it is no use to ask
    again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str,
        type_: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.type = type_
        self.code = code
        self.param = param
        self.retry_after = None if retry_after is None else max(1, math.ceil(retry_after))
        self._headers = dict(headers or {})

    @property
    def kind(self) -> Kind:
        """How an `Outcome` calls it."""
        if self.status in (429, 503):
            return "busy"
        if self.status == 504:
            return "timeout"
        return "client_error" if self.status < 500 else "upstream_error"

    @property
    def object(self) -> dict[str, Any]:
        return error_object(self.message, self.type, self.code, self.param)

    @property
    def body(self) -> bytes:
        return json.dumps(self.object, ensure_ascii=False).encode("utf-8", "replace")

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to it, Retry-After among them."""
        retry = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return {**self._headers, **retry}


def error_object(
    message: str, type_: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """The object that stands in a body, or in an event of a stream."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """400: what was asked cannot be."""
    return Refusal(400, message, reason="request", param=param, code=code)


def no_key() -> Refusal:
    """401: no key, or one that opens nothing. It does not tell which."""
    return Refusal(
        401,
        "a valid API key is needed: send the header Authorization: Bearer KEY",
        reason="key",
        type_=DENIED,
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def no_such_host() -> Refusal:
    """421: a name that the gateway is not known by; what was sent is not repeated."""
    return Refusal(
        421,
        "without keys this gateway answers for localhost, addresses and gateway.hosts only, and "
        "the request's Host is none of them",
        reason="host",
        code="unknown_host",
    )


def no_such_model(model: str) -> Refusal:
    """404: no route of that name."""
    return Refusal(
        404,
        f"there is no model {model[:128]!r}; GET /v1/models lists those there are",
        reason="model",
        param="model",
        code="model_not_found",
    )


def not_for_this_key(model: str) -> Refusal:
    """403: a route that the key may not use."""
    return Refusal(
        403,
        f"this API key may not use the model {model[:128]!r}",
        reason="model",
        type_=DENIED,
        param="model",
        code="model_not_allowed",
    )


def over_the_limit(seconds: float) -> Refusal:
    """429: a limit of the key is reached; `seconds` until it is not."""
    return Refusal(
        429,
        "a limit of this API key is reached",
        reason="limit",
        type_=LIMITED,
        code="rate_limit_exceeded",
        retry_after=seconds,
    )


def busy(seconds: float) -> Refusal:
    """429: all slots are taken, and so are the places to wait."""
    return Refusal(
        429,
        "all servers of this model are busy",
        reason="busy",
        type_=LIMITED,
        code="server_busy",
        retry_after=seconds,
    )


def draining() -> Refusal:
    """503: the gateway is about to end."""
    return Refusal(
        503, "the gateway is stopping", reason="draining", type_=BROKEN, code="draining",
        retry_after=5,
    )  # fmt: skip


def nobody_healthy(seconds: float = 5) -> Refusal:
    """503: no server of the route can take the request."""
    return Refusal(
        503,
        "no server of this model can answer at present",
        reason="unhealthy",
        type_=BROKEN,
        code="no_healthy_server",
        retry_after=seconds,
    )


def server_failed(what: str) -> Refusal:
    """502: the engine did not answer as it should; `what` it did, as the end of a sentence."""
    return Refusal(502, f"the server {what}", reason="", type_=BROKEN, code="server_failed")


def too_slow(seconds: float) -> Refusal:
    """504: nothing came from the engine for too long."""
    return Refusal(
        504, f"the server sent nothing for {seconds:g} s", reason="", type_=BROKEN, code="timeout"
    )
