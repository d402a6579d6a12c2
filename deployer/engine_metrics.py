"""What engines tell of themselves in /metrics, under one name for all of them. Pure.

llama.cpp counts the tokens of an answer when the answer has ended; its `steps` move meanwhile. It
writes six digits, so beyond a million its counters move in jumps. The engine transformers and
llama-cpp-python's own server have no metrics.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

_SAMPLE = re.compile(
    r"^([A-Za-z_:][\w:]*)(?:\{.*\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t\r]*$", re.MULTILINE
)
_NAMES = {
    "llamacpp:requests_processing": "running",
    "vllm:num_requests_running": "running",
    "llamacpp:requests_deferred": "waiting",
    "vllm:num_requests_waiting": "waiting",
    "llamacpp:prompt_tokens_total": "prompt_tokens",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "llamacpp:tokens_predicted_total": "output_tokens",
    "vllm:generation_tokens_total": "output_tokens",
    "llamacpp:n_decode_total": "steps",
    "vllm:iteration_tokens_total_count": "steps",
    "vllm:request_success_total": "requests",
    "llamacpp:kv_cache_usage_ratio": "cache_used",
    "vllm:kv_cache_usage_perc": "cache_used",
}
"""Their names, and the field each one is. Releases of llama.cpp before 2026 tell of the cache."""


@dataclass(frozen=True)
class EngineMetrics:
    """One reading. Counters grow since the engine's start; None is what it does not tell.

    `running` and `waiting` are requests; `prompt_tokens`, `output_tokens` and `requests` counters;
    `steps` counts computations of the model; `cache_used` is the share (0 to 1) of the key-value
    cache in use.
    """

    running: float | None = None
    waiting: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    requests: float | None = None
    cache_used: float | None = None
    steps: float | None = None

    @property
    def load(self) -> float | None:
        """Requests that run or wait, None where neither is told."""
        told = [count for count in (self.running, self.waiting) if count is not None]
        return sum(told) if told else None

    @property
    def progress(self) -> tuple[float | None, ...]:
        """What moves while the engine works, and never else."""
        return (self.prompt_tokens, self.output_tokens, self.steps)


def read_engine_metrics(text: str) -> EngineMetrics:
    """Read the Prometheus text of llama.cpp, vLLM or our transformers server.

    Several series of one name (one for each engine of a data-parallel vLLM, one for each reason a
    request ended) are added up; of shares the largest counts. What is unknown, or no finite
    number, is passed over.
    """
    found: dict[str, list[float]] = {}
    for name, written in _SAMPLE.findall(text):
        field = _NAMES.get(name)
        number = _number(written) if field else None
        if field and number is not None:
            found.setdefault(field, []).append(number)
    return EngineMetrics(**{field: _one(field, values) for field, values in found.items()})


def _one(field: str, values: Iterable[float]) -> float:
    return max(values) if field == "cache_used" else sum(values)


def _number(written: str) -> float | None:
    try:
        number = float(written)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
