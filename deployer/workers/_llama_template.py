"""A conversation as llama.cpp's server writes it with the chat template of a GGUF file."""

import http.client
import json
from urllib.parse import urlsplit

import xllamacpp
from _protocol import WorkerError

TIMEOUT = 60.0


def render(gguf, messages):
    """The prompt for `messages`, by llama.cpp's native server, started in this process."""
    try:
        server = xllamacpp.Server(_settings(gguf))
    except (RuntimeError, ValueError) as error:
        raise WorkerError(
            f"llama.cpp's server cannot load the model: {error}",
            "The log says why: a damaged file, an unknown architecture or too little memory.",
        ) from error
    address = urlsplit(server.listening_address)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=TIMEOUT)
    body = json.dumps({"messages": messages, "add_generation_prompt": True})
    try:
        connection.request("POST", "/apply-template", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
    except TimeoutError as error:
        raise WorkerError(f"llama.cpp did not render the template in {TIMEOUT:.0f} s") from error
    if answer.status != 200:
        raise WorkerError(
            f"llama.cpp cannot render the chat template ({answer.status}): {text[:300]}",
            "The template uses what llama.cpp does not know; chats could not be served.",
        )
    return json.loads(text)["prompt"]


def _settings(gguf):
    settings = xllamacpp.CommonParams()
    settings.model.path = gguf
    settings.hostnames = ["127.0.0.1"]
    settings.port = 0
    settings.n_parallel = 1
    settings.n_ctx = 256
    settings.cache_ram_mib = 0
    settings.warmup = False
    settings.use_jinja = True
    return settings
