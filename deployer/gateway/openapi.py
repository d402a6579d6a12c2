"""The OpenAPI document of what the gateway answers: what it checks itself, and every status.

Fields that only engines know are left open: they pass through, and an engine may refuse them.
"""

from __future__ import annotations

from typing import Any

from deployer import __version__
from deployer.gateway.requests import (
    ALTERNATIVES,
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    LENGTHS,
    MAX_ALTERNATIVES,
    MAX_CHOICES,
    MAX_INPUTS,
    REFUSED,
)

Json = dict[str, Any]

_ERRORS = {
    400: "The request is wrong, or its prompt is longer than the context.",
    401: "A valid API key is needed.",
    403: "The API key may not use this model.",
    404: "There is no such model, or its engine does not offer this.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    421: "There are no keys, and the header Host names a host that is not the gateway's.",
    429: "A limit of the API key is reached, or all servers are busy.",
    500: "The gateway failed.",
    502: "The server failed before anything was answered.",
    503: "No healthy server, or the gateway is stopping.",
    504: "The server sent nothing for too long.",
}
_OWN_HEADERS = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}
_STREAM = """A stream of events, each `data: ` and a JSON object. The last one is `data: [DONE]`. \
Where the answer breaks off, the last one holds an `error` and there is no `[DONE]`."""


def document(most_tokens: int) -> Json:
    """The document; `most_tokens` is the largest context of any server."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "deployer gateway",
            "version": __version__,
            "description": "OpenAI's API as far as the gateway lets it through.",
        },
        "security": [{"key": []}],
        "paths": {
            "/health": {"get": _health()},
            "/metrics": {"get": _get("metrics", "Figures for Prometheus.", "text/plain", _TEXT)},
            "/openapi.json": {
                "get": _get("openapi", "This document.", "application/json", {"type": "object"})
            },
            "/v1/models": {
                "get": _get("models", "The models the key may use.", "application/json", _MODELS)
            },
            CHAT: {"post": _post("chat", "Answer a chat.", _chat(most_tokens))},
            COMPLETIONS: {
                "post": _post("completions", "Go on with a text.", _completions(most_tokens))
            },
            EMBEDDINGS: {
                "post": _post("embeddings", "Embed texts, where the engine can.", _embeddings())
            },
        },
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


_TEXT: Json = {"type": "string"}
_FLAG: Json = {"type": ["boolean", "null"]}
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MODELS: Json = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {
        "object": {"const": "list"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "object", "created", "owned_by"],
                "properties": {"id": {"type": "string"}, "object": {"const": "model"}},
            },
        },
    },
}


def _response(told: str, content: Json, *headers: str) -> Json:
    named = {name: {"schema": _TEXT, "required": True} for name in ("X-Request-Id", *headers)}
    return {"description": told, "headers": named, "content": content}


def _errors(*statuses: int) -> Json:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        str(status): _response(_ERRORS[status], content, *_OWN_HEADERS.get(status, ()))
        for status in statuses
    }


def _get(name: str, told: str, media: str, schema: Json) -> Json:
    answers = {"200": _response(told, {media: {"schema": schema}}), **_errors(400, 401, 421, 500)}
    return {"operationId": name, "summary": told, "responses": answers}


def _health() -> Json:
    schema = {
        "type": "object",
        "required": ["status", "generation"],
        "properties": {
            "status": {"enum": ["ok", "degraded", "draining", "unhealthy"]},
            "generation": {"type": "integer"},
        },
    }
    content = {"application/json": {"schema": schema}}
    answers = {
        "200": _response("Requests are answered, by all routes or some.", content),
        "503": _response("No route has a server, or the gateway is stopping.", content),
        **_errors(400, 500),
    }
    summary = "Whether requests are answered; needs no key."
    return {"operationId": "health", "summary": summary, "security": [], "responses": answers}


def _post(name: str, told: str, schema: Json) -> Json:
    content: Json = {"application/json": {"schema": {"type": "object"}}}
    if "stream" in schema["properties"]:
        content["text/event-stream"] = {"schema": {"description": _STREAM}}
    return {
        "operationId": name,
        "summary": told,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": _response("The answer.", content, "X-Deployer-Server"),
            **_errors(*_ERRORS),
        },
    }


def _body(required: list[str], **properties: Json) -> Json:
    model = {"type": "string", "minLength": 1, "description": "Name of a route."}
    return {
        "type": "object",
        "required": ["model", *required],
        "properties": {"model": model, **{key: {"type": "null"} for key in REFUSED}, **properties},
    }


def _generation(most_tokens: int) -> Json:
    """What chat and completions have in common."""
    count = {"type": ["integer", "null"], "minimum": 1}
    several = {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_ALTERNATIVES}
    options = {"type": ["object", "null"], "properties": {"include_usage": _FLAG}}
    return {
        "stream": _FLAG,
        "stream_options": options,
        "n": {**count, "maximum": MAX_CHOICES},
        "best_of": {**count, "maximum": MAX_CHOICES},
        **{key: {**count, "maximum": most_tokens} for key in LENGTHS},
        **dict.fromkeys(ALTERNATIVES, several),
        "logprobs": {**several, "type": ["boolean", "integer", "null"]},
    }


def _chat(most_tokens: int) -> Json:
    message = {
        "type": "object",
        "required": ["role"],
        "properties": {"role": _TEXT, "content": {"type": ["string", "array", "null"]}},
    }
    messages = {"type": "array", "minItems": 1, "items": message}
    return _body(["messages"], messages=messages, **_generation(most_tokens))


def _completions(most_tokens: int) -> Json:
    return _body(["prompt"], prompt=_prompts(MAX_CHOICES), **_generation(most_tokens))


def _embeddings() -> Json:
    return _body(["input"], input=_prompts(MAX_INPUTS))


def _prompts(most: int) -> Json:
    """Text, a list of texts, token ids, or a list of lists of token ids."""
    tokens = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
    several = {
        "type": "array",
        "minItems": 1,
        "maxItems": most,
        "items": {"anyOf": [_TEXT, tokens]},
    }
    return {"anyOf": [_TEXT, tokens, several]}
