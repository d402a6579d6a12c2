"""One streamed answer as it comes in: lines with their arrival times in, a Sample out.

Standard library only, no socket: everything here is tested without a server.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pattern import KEYS, Pattern, learn

from deployer.metrics import PREVIEW, Sample, first_chunk_tokens

DONE = b"[DONE]"


class Answer:
    """The state of one server-sent event stream of chat completion chunks."""

    def __init__(self, identity: str, phase: str, prompt: str, due: float, sent: float) -> None:
        self.identity, self.phase, self.prompt = identity, phase, prompt
        self.due, self.sent = due, sent
        self.opened: float | None = None
        self.turn = 0
        self.max_tokens: int | None = None
        self.status: int | None = None
        self.error: str | None = None
        self.detail = ""
        self.done = False
        self.chunks: list[float] = []
        self.parts: list[str] = []
        self.said: list[str] = []
        """The content without the reasoning: what a conversation goes on with."""
        self.first_output: float | None = None
        self.finish_reason: str | None = None
        self.finished: float | None = None
        self.usage: dict[str, Any] = {}
        self.n_first: int | None = None
        self.pattern: Pattern | None = None

    def fail(self, error: str, detail: object = "") -> None:
        """Note the first thing that went wrong."""
        if self.error is None:
            self.error, self.detail = error, str(detail)[:PREVIEW]

    def feed(self, line: bytes, now: float) -> None:
        """Take one line of the stream, read at `now`."""
        if self.pattern is not None and (text := self.pattern.text(line)) is not None:
            self._chunk(text, "" if self.pattern.key == "content" else text, now)
            return
        name, _, value = line.partition(b":")
        if name == b"error" or (name == b"event" and value.strip() == b"error"):
            self.fail("sse_error", line.decode("utf-8", "replace").strip())
        if name != b"data":
            return
        value = value.strip()
        if value == DONE:
            self.done = True
            return
        try:
            event = json.loads(value)
            if "error" in event:
                self.fail("sse_error", _message(event["error"]))
            else:
                self._event(event, now)
                self._learn(event, line)
        except (ValueError, TypeError, AttributeError, LookupError):
            self.fail("sse_error", f"not a chunk: {value.decode('utf-8', 'replace')}")

    def _event(self, event: dict[str, Any], now: float) -> None:
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            text = delta.get("content") or ""
            reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
            if text or reasoning or delta.get("tool_calls"):
                self._chunk(reasoning + text, reasoning, now)
            if self.first_output is None and (text or delta.get("tool_calls")):
                self.first_output = now
            if choice.get("finish_reason"):
                self.finish_reason, self.finished = choice["finish_reason"], now
        self.usage = event.get("usage") or self.usage
        if len(self.chunks) == 1 and self.n_first is None and event.get("usage"):
            self.n_first = self.usage.get("completion_tokens") or None

    def _chunk(self, text: str, reasoning: str, now: float) -> None:
        """A chunk with `text`, of which `reasoning` at the beginning is no answer yet."""
        self.chunks.append(now)
        self.parts.append(text)
        self.said.append(text[len(reasoning) :])

    def _learn(self, event: dict[str, Any], line: bytes) -> None:
        """Let lines like this one be read without parsing, where all it says is a text."""
        choices = event.get("choices") or ()
        if len(choices) != 1 or choices[0].get("finish_reason") or event.get("usage"):
            return
        delta = choices[0].get("delta") or {}
        said = [key for key, value in delta.items() if value and key != "role"]
        if len(said) == 1 and said[0] in KEYS and isinstance(delta[said[0]], str):
            self.pattern = learn(line, said[0], delta[said[0]]) or self.pattern

    @property
    def text(self) -> str:
        """What came so far, reasoning included."""
        return "".join(self.parts)

    def sample(self, closed: float, least_tokens: int = 0) -> Sample:
        """The record of this request; its stream ended at `closed`.

        With `least_tokens` (end-of-text is ignored) fewer output tokens are an error.
        """
        text = self.text
        output = self.usage.get("completion_tokens")
        self._judge(output, least_tokens)
        return Sample(
            id=self.identity,
            phase=self.phase,
            due=self.due,
            sent=self.sent,
            closed=closed,
            opened=self.opened,
            first=self.chunks[0] if self.chunks else None,
            first_output=self.first_output,
            last=self._last(),
            chunks=tuple(self.chunks),
            n_first=self._first_tokens(output, len(text)),
            first_chars=len(self.parts[0]) if self.parts else 0,
            prompt_tokens=self.usage.get("prompt_tokens"),
            cached_tokens=(self.usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
            output_tokens=output,
            token_source="unknown" if output is None else "usage",
            error=self.error,
            detail=self.detail,
            status=self.status,
            finish_reason=self.finish_reason,
            prompt=self.prompt[:PREVIEW],
            # Without usage the whole text is kept: it is tokenized after the run.
            text=text if output is None else text[:PREVIEW],
            text_sha256=hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(),
            max_tokens=self.max_tokens,
            turn=self.turn,
        )

    def _judge(self, output: int | None, least_tokens: int) -> None:
        if self.error is None and not self.done:
            self.fail("truncated", "the stream ended without [DONE]")
        if self.error is None and not self.chunks:
            self.fail("empty", "no content came")
        if self.error is None and output is not None and output < least_tokens:
            self.fail("short_output", f"{output} of {least_tokens} tokens")

    def _last(self) -> float | None:
        """Arrival of the last token: the end-of-text token comes as the finish "stop"."""
        if not self.chunks:
            return None
        if self.finish_reason == "stop" and self.finished is not None:
            return max(self.finished, self.chunks[-1])
        return self.chunks[-1]

    def _first_tokens(self, output: int | None, chars: int) -> int | None:
        if output is None or not self.chunks:
            return None
        if self.n_first is not None:
            return self.n_first
        return first_chunk_tokens(output, len(self.chunks), len(self.parts[0]), chars)


def _message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
