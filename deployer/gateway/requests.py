"""Check the body of a request, and write it anew for an engine. Pure.

What the gateway decides by is checked: model, limits, whether it is a stream. All other fields
pass through to the engine, which knows them better.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from deployer.gateway.refusals import Refusal, invalid

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
GENERATING = (CHAT, COMPLETIONS, EMBEDDINGS)
"""The paths whose requests go to an engine."""
MAX_DEPTH = 64
MAX_CHOICES = 8
"""Answers to one request, and prompts in one: each takes a slot's worth of work."""
MAX_INPUTS = 2048
MAX_ALTERNATIVES = 20
"""Alternative tokens told for each token; an engine would tell its whole vocabulary."""
LENGTHS = ("max_tokens", "max_completion_tokens", "n_predict")
ALTERNATIVES = ("logprobs", "top_logprobs", "n_probs", "prompt_logprobs")
REFUSED = (
    "truncate_prompt_tokens", "id_slot", "priority", "kv_transfer_params", "vllm_xargs",
    "prompt_embeds", "chat_template",
)  # fmt: skip
"""Fields of engines by which one client cuts prompts, disturbs others, or runs its own template."""
MAX_SESSION = 256
"""Characters of a session's name that count."""


@dataclass(frozen=True)
class Asked:
    """A request that may be served. `max_tokens` is None where the client sets no limit.

    `wants_usage` tells whether the client asked for the usage of a stream; the gateway always
    does, and takes it out again.
    """

    path: str
    body: dict[str, Any]
    model: str
    stream: bool
    wants_usage: bool
    max_tokens: int | None
    user: str | None

    def for_server(self, model: str) -> bytes:
        """The body for a server that calls the model `model`."""
        body = {**self.body, "model": model}
        if self.stream:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def read_request(path: str, raw: bytes) -> Asked:
    """The request that a body asks for; raises Refusal (400) where it is wrong."""
    body = _read_object(raw)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("model must be the name of a model", "model")
    for name in REFUSED:
        if body.get(name) is not None:
            raise invalid(f"{name} is not taken here", name)
    if path == EMBEDDINGS:
        _check_prompts(body, "input", MAX_INPUTS)
        return Asked(path, body, model, False, False, None, _user(body))
    _check_counts(body)
    if path == CHAT:
        _check_messages(body)
    else:
        _check_prompts(body, "prompt", MAX_CHOICES)
    stream = _check_flag(body, "stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise invalid("stream_options must be an object", "stream_options")
    wants_usage = _check_flag(options or {}, "include_usage", "stream_options.include_usage")
    return Asked(path, body, model, stream, wants_usage, _max_tokens(body), _user(body))


def _read_object(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
        body = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        if b"\\u" in raw:  # a lone half of a surrogate pair is no text, and some engines die of it
            json.dumps(body, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise _too_deep() from None
    except UnicodeError:
        raise invalid("the body is not UTF-8 text") from None
    except ValueError as error:
        raise invalid(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise invalid("the body must be a JSON object")
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return body
    raise _too_deep()


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) != float("inf") else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _too_deep() -> Refusal:
    return invalid(f"the body is nested deeper than {MAX_DEPTH} levels")


def _check_messages(body: dict[str, Any]) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages must be a list with at least one message", "messages")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise invalid(f"messages[{number}] must be an object with a role", "messages")
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise invalid(f"messages[{number}].content must be text or a list", "messages")
        if isinstance(content, list) and any(map(_points_elsewhere, content)):
            raise invalid("images and sounds must be data: URLs", "messages")


def _points_elsewhere(part: object) -> bool:
    """Whether an engine would have to fetch what the part names, wherever the client points it."""
    for name, value in part.items() if isinstance(part, dict) else ():
        url = value.get("url") if isinstance(value, dict) else value
        named = isinstance(value, dict) or str(name).endswith("url")
        if named and isinstance(url, str) and not url.startswith("data:"):
            return True
    return False


def _check_prompts(body: dict[str, Any], name: str, most: int) -> None:
    """Text, a list of texts, token ids, or a list of lists of token ids."""
    given = body.get(name)
    if isinstance(given, str):
        return
    if not isinstance(given, list) or not given:
        raise invalid(f"{name} must be text, or a list that is not empty", name)
    if all(_is_count(item) for item in given):
        return
    if len(given) > most:
        raise invalid(f"{name} may hold at most {most} texts", name)
    for item in given:
        tokens = isinstance(item, list) and bool(item) and all(_is_count(token) for token in item)
        if not isinstance(item, str) and not tokens:
            raise invalid(f"{name} must hold texts or token ids", name)


def _is_count(value: object) -> bool:
    """Whether it is a whole number of 0 or more; 6.0 is one, as JSON Schema says."""
    if isinstance(value, float):
        return value >= 0 and value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_counts(body: dict[str, Any]) -> None:
    for name in ("n", "best_of"):
        value = body.get(name)
        if value is not None and not (_is_count(value) and 1 <= value <= MAX_CHOICES):
            raise invalid(f"{name} must be a whole number from 1 to {MAX_CHOICES}", name)
    for name in ALTERNATIVES:
        value = body.get(name)
        if value is None or (name == "logprobs" and isinstance(value, bool)):
            continue
        if not _is_count(value) or value > MAX_ALTERNATIVES:
            raise invalid(f"{name} must be a whole number up to {MAX_ALTERNATIVES}", name)


def _check_flag(body: dict[str, Any], name: str, param: str | None = None) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(f"{param or name} must be true or false", param or name)
    return bool(value)


def _max_tokens(body: dict[str, Any]) -> int | None:
    """The largest of all fields, so that none gets around the context."""
    limits = []
    for name in LENGTHS:
        value = body.get(name)
        if value is None:
            continue
        if not _is_count(value) or value < 1:
            raise invalid(f"{name} must be a whole number of 1 or more", name)
        limits.append(int(value))
    return max(limits, default=None)


def _user(body: dict[str, Any]) -> str | None:
    """The session that the field `user` names."""
    user = body.get("user")
    return user[:MAX_SESSION] if isinstance(user, str) and user else None
