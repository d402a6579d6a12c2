"""transformers: which toolchain, which arguments and which environment. Pure.

The server is made of the parts of `transformers serve` (`workers/serve_transformers.py`), and
quantizes the bundle's 16-bit weights each time it loads them.
"""

from __future__ import annotations

import json
from typing import Literal

from deployer.command import Command
from deployer.engines.launch import Facts, Launch, Memory, ModelToServe, Portable, Scoring
from deployer.errors import PlanError
from deployer.recipe import SERVERS, Serve

GPU, CPU = "transformers-cuda", "transformers"
"""Toolchains that carry the server."""

BUFFERS = 3 << 29
"""Bytes that the process holds beside weights and cache on a CPU: 1.2 GiB with the demo model."""
HOST_BUFFERS = 4 << 30
"""Bytes it holds in the machine's own memory when a GPU computes; not measured."""


class TransformersEngine:
    """The adapter; see `Engine`."""

    name = "transformers"
    programs: tuple[str, ...] = ()
    format: Literal["gguf", "checkpoint"] = "checkpoint"

    def scoring(self, device: str) -> Scoring:
        return Scoring(GPU if device == "cuda" else CPU, "score_transformers")

    def choose(self, wanted: str, facts: Facts) -> str:
        if wanted not in SERVERS[self.name]:
            known = ", ".join(SERVERS[self.name])
            raise PlanError(f"transformers has no server {wanted!r}", f"There are: {known}.")
        return "transformers"

    def memory(self, model: ModelToServe, serve: Serve, facts: Facts) -> Memory:
        """One request is computed at a time, so there is one cache, whatever `parallel` says."""
        if _on_gpu(model, facts):
            return Memory(0, 0, HOST_BUFFERS)
        times = 2 if serve.transformers.dtype == "float32" else 1
        cache = model.kv_bytes_per_token * serve.context * times
        return Memory(model.weights_bytes * times, cache, BUFFERS)

    def launch(self, server: str, model: ModelToServe, serve: Serve, facts: Facts) -> Launch:
        if serve.extra_args:
            raise PlanError(
                "serve.extra_args cannot be used with the engine transformers",
                "Remove them: what its server can be told stands in serve and serve.transformers.",
            )
        gpu = _on_gpu(model, facts)
        command = Command(
            GPU if gpu else CPU,
            worker="serve_transformers",
            arguments=_arguments(model, serve, gpu),
            env=_environment(serve, facts),
        )
        warnings = (_ONE_AT_A_TIME,) if serve.parallel > 1 else ()
        return Launch(server, command, drains=True, metrics=None, warnings=warnings)

    def portable(
        self, model: ModelToServe, serve: Serve, threads: int, release: str | None = None
    ) -> Portable:
        """Always PlanError: `transformers serve` neither quantizes so nor bounds the context."""
        raise PlanError(
            "the engine transformers has no program of its own that serves this bundle as it was "
            "measured",
            "Run `deployer serve` there (`deployer export --to tar --offline` carries all it "
            "takes), or build the model for llama.cpp or vllm.",
        )


_ONE_AT_A_TIME = (
    "the engine transformers computes one request at a time, the others wait; llama.cpp and vllm "
    "batch them"
)


def _on_gpu(model: ModelToServe, facts: Facts) -> bool:
    return model.device == "cuda" or (model.device == "auto" and facts.has_gpu)


def _arguments(model: ModelToServe, serve: Serve, gpu: bool) -> tuple[str, ...]:
    arguments = [
        "--model", str(model.weights),
        "--alias", model.alias,
        "--host", serve.host,
        "--port", str(serve.port),
        "--context", str(serve.context),
        "--dtype", serve.transformers.dtype,
        "--device", "cuda" if gpu else "cpu",
        "--drain-timeout", str(serve.drain_timeout),
    ]  # fmt: skip
    if model.load:
        arguments += ["--load", json.dumps(dict(model.load), sort_keys=True)]
    if serve.api_key_file:
        arguments += ["--api-key-file", serve.api_key_file]
    return tuple(arguments)


def _environment(serve: Serve, facts: Facts) -> dict[str, str]:
    """No network, and as many threads as asked for."""
    return {
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "OMP_NUM_THREADS": str(serve.threads or facts.cores),
    }
