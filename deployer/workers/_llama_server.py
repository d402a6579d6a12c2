"""llama.cpp's native server inside this process, and one keep-alive connection to it."""

import http.client
import json
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import xllamacpp
from _protocol import WorkerError


class LlamaServer:
    """The server on a free loopback port, with one slot.

    `load_seconds` is how long the model took to load.
    """

    def __init__(self, gguf, n_ctx, threads=None, timeout=300.0):
        if not Path(gguf).is_file():
            raise WorkerError(f"there is no file {gguf}")
        started = time.monotonic()
        try:
            self._server = xllamacpp.Server(_settings(gguf, n_ctx, threads))
        except (RuntimeError, ValueError) as error:
            raise WorkerError(
                f"llama.cpp cannot load {Path(gguf).name}: {error}",
                "The log says why: a damaged file, an unknown architecture or too little memory.",
            ) from error
        self.load_seconds = time.monotonic() - started
        address = urlsplit(self._server.listening_address)
        self._connection = http.client.HTTPConnection(
            address.hostname, address.port, timeout=timeout
        )

    def ask(self, method, path, body=None):
        """The decoded JSON answer; raises WorkerError for any other status than 200."""
        payload = None if body is None else json.dumps(body).encode()
        try:
            self._connection.request(
                method, path, payload, {"Content-Type": "application/json"} if payload else {}
            )
            answer = self._connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
        except TimeoutError as error:
            raise WorkerError(
                f"llama.cpp did not answer {path} in {self._connection.timeout:.0f} s"
            ) from error
        if answer.status != 200:
            raise WorkerError(f"llama.cpp refused {path} ({answer.status}): {text[:300]}")
        return json.loads(text)

    def tokenize(self, text, special=False):
        """Token ids without BOS; with `special`, special tokens in the text are recognized."""
        question = {"content": text, "add_special": False, "parse_special": special}
        return self.ask("POST", "/tokenize", question)["tokens"]

    def special_id(self, name):
        """The id of "bos_token" or "eos_token", None where the model has none."""
        text = self.ask("GET", "/props").get(name)
        ids = self.tokenize(text, special=True) if text else []
        return ids[0] if len(ids) == 1 else None


def _settings(gguf, n_ctx, threads):
    settings = xllamacpp.CommonParams()
    settings.model.path = gguf
    settings.hostnames = ["127.0.0.1"]
    settings.port = 0
    settings.n_parallel = 1
    settings.n_ctx = n_ctx
    settings.cache_ram_mib = 0
    settings.warmup = False
    settings.use_jinja = True
    # One core stays free: llama.cpp's threads wait for each other by spinning, so that one that
    # is not running holds up all (measured: 2 threads on 2 busy cores took 20 times as long as 1).
    threads = threads or max(1, len(os.sched_getaffinity(0)) - 1)
    settings.cpuparams.n_threads = threads
    settings.cpuparams_batch.n_threads = threads
    return settings
