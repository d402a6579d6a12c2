"""llama.cpp: which of its servers to start, and with which arguments. Pure.

Three programs are the same native C++ server and take the same arguments: an installed
`llama-server`, the one compiled from the pinned source, and the xllamacpp wheel behind
`workers/serve_xllamacpp.py`. The fourth is llama-cpp-python's own server, for comparison.
"""

from __future__ import annotations

from typing import Literal

from deployer.command import Command
from deployer.engines.launch import Facts, Launch, Memory, ModelToServe, Portable, Scoring
from deployer.errors import PlanError
from deployer.recipe import SERVERS, Serve

WHEEL, NATIVE, PYTHON = "llama-cpp", "llama-cpp-native", "llama-cpp-python"
"""Toolchains that carry the servers."""
RELEASE = "llama-cpp-python 0.3.36"
"""The release whose llama.cpp the toolchains lock; its llama-server knows every argument here."""

MANAGED = {
    "--model": "the bundle", "-m": "the bundle", "--model-url": "the bundle", "-mu": "the bundle",
    "--hf-repo": "the bundle", "-hf": "the bundle", "-hfr": "the bundle",
    "--hf-file": "the bundle", "-hff": "the bundle", "--docker-repo": "the bundle",
    "-dr": "the bundle", "--models-dir": "the bundle", "--models-preset": "the bundle",
    "--alias": "the recipe's name", "-a": "the recipe's name",
    "--host": "serve.host", "--port": "serve.port", "--reuse-port": "serve.port",
    "--api-key": "serve.api_key_file", "--api-key-file": "serve.api_key_file",
    "--ctx-size": "serve.context", "-c": "serve.context",
    "--kv-unified": "serve.context", "-kvu": "serve.context",
    "--context-shift": "serve.context",
    "--parallel": "serve.parallel", "-np": "serve.parallel",
    "--threads": "serve.threads", "-t": "serve.threads",
}  # fmt: skip
"""Arguments that `extra_args` must not hold, and what sets them instead."""

_MIB = 1 << 20
_PROMPT_CACHE = 8192 * _MIB  # the server's own default limit for prompts it keeps in memory
_ALL_LAYERS = "999"
BUFFERS = 256 * _MIB
"""Bytes allowed for the server's compute buffers and the process itself."""


class LlamaCpp:
    """The adapter; see `Engine`."""

    name = "llama.cpp"
    programs: tuple[str, ...] = ("llama-server",)
    format: Literal["gguf", "checkpoint"] = "gguf"

    def scoring(self, device: str) -> Scoring:
        return Scoring(WHEEL, "score_llama_cpp")

    def choose(self, wanted: str, facts: Facts) -> str:
        if wanted == "auto":
            return _fastest_that_is_there(facts)
        if wanted not in SERVERS[self.name]:
            known = ", ".join(SERVERS[self.name])
            raise PlanError(f"llama.cpp has no server {wanted!r}", f"There are: {known}.")
        if wanted == "llama-server" and "llama-server" not in facts.programs:
            raise PlanError(
                "serve.server is llama-server, but no llama-server is on PATH",
                "Install one, or set serve.server to auto, xllamacpp or source.",
            )
        return wanted

    def memory(self, model: ModelToServe, serve: Serve, facts: Facts) -> Memory:
        cache = model.kv_bytes_per_token * serve.context * serve.parallel
        return Memory(model.weights_bytes, cache, BUFFERS)

    def launch(self, server: str, model: ModelToServe, serve: Serve, facts: Facts) -> Launch:
        _check_extra_args(serve.extra_args)
        if server == "llama-cpp-python":
            return _python_server(model, serve, facts)
        arguments = _native_arguments(server, model, serve, facts)
        if server == "xllamacpp":
            # The worker waits for running requests itself, so it is told how long.
            drain = ("--drain-timeout", str(serve.drain_timeout))
            command = Command(WHEEL, worker="serve_xllamacpp", arguments=(*drain, *arguments))
        else:
            toolchain = NATIVE if server == "source" else None
            command = Command(toolchain, program="llama-server", arguments=arguments)
        return Launch(server, command, drains=server == "xllamacpp")

    def portable(
        self, model: ModelToServe, serve: Serve, threads: int, release: str | None = None
    ) -> Portable:
        """llama-server, with arguments that old and new builds of it know."""
        _check_extra_args(serve.extra_args)
        keyless = serve.model_copy(update={"api_key_file": None})
        return Portable(
            program=("llama-server",),
            arguments=_native_arguments("llama-server", model, keyless, Facts(cores=threads)),
            env={},
            release=f"llama.cpp {release}" if release else f"llama.cpp of {RELEASE}",
            key_variable="LLAMA_API_KEY",
        )


def _fastest_that_is_there(facts: Facts) -> str:
    """Compiled for this processor, else installed, else the wheel; never one to be compiled."""
    if NATIVE in facts.toolchains:
        return "source"
    return "llama-server" if "llama-server" in facts.programs else "xllamacpp"


def _native_arguments(
    server: str, model: ModelToServe, serve: Serve, facts: Facts
) -> tuple[str, ...]:
    """The native server's arguments; those of `extra_args` come last.

    The server divides its context among its slots, so it gets the context of one request times
    their number. Shifting is off: a prompt that does not fit is refused, never cut. No cores known
    leave the number of threads to the server.
    """
    threads = serve.threads or facts.cores
    arguments = [
        "--model", str(model.weights),
        "--alias", model.alias,
        "--host", serve.host,
        "--port", str(serve.port),
        "--ctx-size", str(serve.context * serve.parallel),
        "--parallel", str(serve.parallel),
        *(("--threads", str(threads)) if threads else ()),
        "--no-context-shift",
        "--jinja",
        "--metrics",
        "--slots",
        "--no-webui",
    ]  # fmt: skip
    if model.device == "cuda":
        arguments += ["--n-gpu-layers", _ALL_LAYERS]
    elif model.device == "cpu":
        arguments += ["--n-gpu-layers", "0"]
    if serve.api_key_file:
        arguments += ["--api-key-file", serve.api_key_file]
    if server != "llama-server":  # an installed one may be too old to know these
        arguments += ["--cors-origins", "localhost"]
        arguments += _prompt_cache_limit(facts)
    return (*arguments, *serve.extra_args)


def _prompt_cache_limit(facts: Facts) -> list[str]:
    """Bound the cache of old prompts to half of the spare memory where that is below 8 GiB."""
    if facts.spare_memory is None or facts.spare_memory >= 2 * _PROMPT_CACHE:
        return []
    return ["--cache-ram", str(max(0, facts.spare_memory // 2 // _MIB))]


def _python_server(model: ModelToServe, serve: Serve, facts: Facts) -> Launch:
    """llama-cpp-python's server: one request at a time, whatever `parallel` says."""
    if serve.extra_args:
        raise PlanError(
            "serve.extra_args cannot be used with the llama-cpp-python server",
            "Remove them, or set serve.server to auto.",
        )
    arguments = [
        "--model", str(model.weights),
        "--alias", model.alias,
        "--host", serve.host,
        "--port", str(serve.port),
        "--ctx-size", str(serve.context),
        "--threads", str(serve.threads or facts.cores),
        "--n-gpu-layers", "-1" if model.device == "cuda" else "0",
    ]  # fmt: skip
    if serve.api_key_file:
        arguments += ["--api-key-file", serve.api_key_file]
    command = Command(PYTHON, worker="serve_llama_cpp_python", arguments=tuple(arguments))
    warning = (
        "the llama-cpp-python server handles one request at a time: under load the others wait, "
        "and streams carry no usage; serve.server: auto takes a server that batches them"
    )
    return Launch(
        "llama-cpp-python", command, drains=True, health=None, metrics=None, warnings=(warning,)
    )


def _check_extra_args(extra_args: tuple[str, ...]) -> None:
    """Refuse arguments that deployer sets itself, in every spelling the server accepts."""
    for argument in extra_args:
        name = argument.split("=", 1)[0].replace("_", "-")
        if name in MANAGED:
            raise PlanError(
                f"serve.extra_args must not hold {argument.split('=', 1)[0]}",
                f"It is set by {MANAGED[name]}.",
            )
