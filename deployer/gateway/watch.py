"""Watch a stream go by: what it tells of tokens, errors and its end, at little cost an event."""

from __future__ import annotations

from typing import Any

from deployer.gateway.outcome import Kind
from deployer.gateway.sse import DONE, payload, read_json

_CONTENT = ("content", "reasoning_content", "reasoning", "tool_calls")


class StreamWatch:
    """One stream. Times are seconds of the caller's clock.

    `first` and `last` are the times of the first and the last chunk with content, `chunks` their
    number. `done` is set by the end mark, `failure` by an error of the engine or an event that
    cannot be read; nothing after one of them is worth passing on.
    """

    def __init__(self, *, keep_usage: bool) -> None:
        self.first: float | None = None
        self.last: float | None = None
        self.chunks = 0
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.done = False
        self.failure: str | None = None
        self._keep_usage = keep_usage
        self._plain = False

    @property
    def ended(self) -> bool:
        return self.done or self.failure is not None

    def take(self, event: bytes, now: float) -> bool:
        """Look at a whole event that came at `now`; tells whether it is passed on."""
        if (
            self._plain
            and b'"usage"' not in event
            and b'"error"' not in event
            and DONE not in event
        ):  # in JSON text these words can only be keys: within a value their quotes are escaped
            self.chunks += 1
            self.last = now
            return True
        passed_on = not self.ended and self._look(event, now)
        self._plain = self.first is not None and not self.ended
        return passed_on

    def _look(self, event: bytes, now: float) -> bool:
        data = payload(event)
        if data is None:
            if event.lstrip().startswith(b"error:"):  # some engines send a field of that name
                self.failure = message_of(read_json(event.lstrip()[6:].strip()))
            return self.failure is None
        if data.strip() == DONE:
            self.done = True
            return True
        value = read_json(data)
        if value is None:
            self.failure = "sent an event that is not a JSON object"
        elif value.get("error") is not None:
            self.failure = message_of(value)
        if value is None or self.failure is not None:
            return False
        return self._count(value, now)

    def _count(self, value: dict[str, Any], now: float) -> bool:
        usage, choices = value.get("usage"), value.get("choices")
        if isinstance(usage, dict):
            self.prompt_tokens = _tokens(usage, "prompt_tokens", self.prompt_tokens)
            self.output_tokens = _tokens(usage, "completion_tokens", self.output_tokens)
            if not choices:
                return self._keep_usage
        if has_content(choices):
            self.first = now if self.first is None else self.first
            self.last = now
            self.chunks += 1
        return True

    @property
    def fault(self) -> tuple[Kind, str] | None:
        """What was wrong with a stream that has ended: its kind, and the end of a sentence."""
        if self.failure is not None:
            return "upstream_error", f"failed: {self.failure or 'it gave no reason'}"
        return None if self.done else ("truncated", "ended its stream without the end mark")

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first chunk; None where it cannot be told.

        As docs/loadtest.md, but for the tokens of the first chunk: where chunks hold several
        tokens it is taken to hold as many as the others.
        """
        if self.first is None or self.last is None or not self.output_tokens:
            return None
        several = self.output_tokens > self.chunks + 1
        first = round(self.output_tokens / self.chunks) if several else 1
        later = self.output_tokens - max(1, first)
        return (self.last - self.first) / later if later > 0 else None


def has_content(choices: object) -> bool:
    """Whether a chunk brings text, reasoning or a tool call, and not only a role or an end."""
    if not isinstance(choices, list):
        return False
    for choice in choices:
        if not isinstance(choice, dict):
            continue
        delta = choice.get("delta")
        if choice.get("text") or (isinstance(delta, dict) and any(map(delta.get, _CONTENT))):
            return True
    return False


def message_of(body: object) -> str:
    """The message in what an engine answered with an error, "" where there is none."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error", body)
    if isinstance(error, dict):
        error = error.get("message", error.get("detail", ""))
    return error[:2000] if isinstance(error, str) else ""


def usage_of(body: dict[str, Any]) -> tuple[int | None, int | None]:
    """(prompt tokens, output tokens) of a whole answer."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None, None
    return _tokens(usage, "prompt_tokens", None), _tokens(usage, "completion_tokens", None)


def _tokens(usage: dict[str, Any], name: str, known: int | None) -> int | None:
    value = usage.get(name)
    good = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if good else known
