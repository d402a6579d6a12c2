"""Output tokens per second of an OpenAI-compatible server under N streams; standard library only.

Every stream is a thread with one connection that sends its requests one after another. Prompts
begin with a nonce, so that no prompt cache helps; the end-of-text token is ignored, so that every
answer has the same length; tokens are those of the server's usage.
"""

from __future__ import annotations

import http.client
import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

REQUEST_TIMEOUT = 180.0
TOPICS = (
    "how a lighthouse works", "why bread rises", "what a compiler does", "how rivers form",
    "the history of paper", "how a bicycle stays upright", "what makes a good map",
    "how a library sorts its books",
)  # fmt: skip


@dataclass
class Outcome:
    """What all streams of one measurement got; `seconds` from the first request to the last end."""

    streams: int
    tokens: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def measure(endpoint: str, model: str, streams: int, requests: int, tokens: int) -> Outcome:
    """Send `requests` requests of `tokens` output tokens on each of `streams` connections."""
    outcome, lock = Outcome(streams), threading.Lock()
    start = threading.Barrier(streams + 1)

    def stream(number: int) -> None:
        start.wait()
        for turn in range(requests):
            try:
                got, problem = ask(endpoint, model, number + turn, tokens), ""
            except (OSError, ValueError, http.client.HTTPException) as error:
                got, problem = 0, f"{type(error).__name__}: {error}"
            if not problem and got != tokens:
                problem = f"{got} tokens came where {tokens} were asked for"
            with lock:
                outcome.tokens += got
                outcome.problems += [problem] if problem else []

    threads = [threading.Thread(target=stream, args=(n,), daemon=True) for n in range(streams)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    outcome.seconds = time.monotonic() - began
    return outcome


def ask(endpoint: str, model: str, topic: int, tokens: int) -> int:
    """One streamed chat request; gives the number of tokens the server says it made.

    Raises OSError, HTTPException or ValueError when the stream is not whole.
    """
    address = urlsplit(endpoint)
    connection = http.client.HTTPConnection(
        address.hostname or "127.0.0.1", address.port, timeout=REQUEST_TIMEOUT
    )
    try:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        body = json.dumps(_question(model, topic, tokens))
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"status {response.status}: {response.read(200)!r}")
        return _read_usage(response)
    finally:
        connection.close()


def _question(model: str, topic: int, tokens: int) -> dict[str, object]:
    subject = TOPICS[topic % len(TOPICS)]
    content = f"[{secrets.token_hex(8)}] Explain at length, in plain words, {subject}."
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "temperature": 0.7,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _read_usage(response: http.client.HTTPResponse) -> int:
    """Read a stream to its [DONE]; only the line with the usage is parsed, to spare the CPU."""
    used, done = None, False
    while line := response.readline():
        if b'"completion_tokens"' in line:
            usage = json.loads(line.removeprefix(b"data: ")).get("usage") or {}
            used = usage.get("completion_tokens", used)
        done = done or line.startswith(b"data: [DONE]")
    if not done or used is None:
        raise ValueError("the stream ended without [DONE] or without usage")
    return int(used)
