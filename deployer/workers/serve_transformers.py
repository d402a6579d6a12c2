"""Serve one checkpoint over the OpenAI API with the server of `transformers serve`.

Started by deployer with the Python of the toolchain `transformers` or `transformers-cuda`. Routes,
chat template, generation and streams are those of `transformers serve`; what differs:
- The one model is loaded before the server listens, quantized as `--load` says (JSON, see
  _transformers_model), and goes by the name `--alias`. Requests can load no other.
- Streams end with [DONE]; a prompt beyond `--context` tokens is refused, and an answer ends there.
- `ignore_eos` is understood; a temperature above 0 samples; `stop` is not part of an answer.
- What it would ignore in silence (logprobs, echo, n above 1) is refused.
- With `--api-key-file`, every path but /health wants a key.

SIGTERM drains: running requests get `--drain-timeout` seconds.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import uvicorn
from _answers import to_the_end, without_stop
from _api_keys import RequireKey, accept_keys_of
from _checkpoint_text import load_tokenizer
from _transformers_model import in_memory, load_model
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from transformers.cli.serving.chat_completion import (
    ChatCompletionHandler,
    TransformersCompletionCreateParamsStreaming,
)
from transformers.cli.serving.completion import (
    CompletionHandler,
    TransformersTextCompletionCreateParams,
)
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health")
REFUSED = ("logprobs", "top_logprobs", "echo")
NO_TOKEN = -1
"""An id that no token has, so that a text never ends by it."""


class OneModel(ModelManager):
    """The model that is there; the server's own manager would load what a request names."""

    def __init__(self, args):
        self._folder, self._load = args.model, json.loads(args.load) if args.load else None
        self._created = int(time.time())
        super().__init__(device=args.device, dtype=args.dtype, force_model=args.alias)

    @staticmethod
    def process_model_name(model_id):
        return model_id

    def _load_processor(self, model_id_and_revision, gguf_file=None):
        return load_tokenizer(Path(self._folder))

    def _load_model(self, *_args, **_kwargs):
        dtype = None if self.dtype == "auto" else str(self.dtype).removeprefix("torch.")
        model = load_model(self._folder, self._load, dtype, self.device)
        held = in_memory(model, self._folder)
        size = held["weights_bytes"] / 1e6
        print(f"loaded: {size:.1f} MB, {held['bits_per_weight']:.2f} bits a weight", flush=True)
        return model

    def get_gen_models(self):
        return [{"id": self.force_model, "object": "model", "created": self._created}]


class Bounded:
    """What both kinds of requests have in common; `context` is set before the first one."""

    context = 0

    def _build_generation_config(self, body, model_generation_config, use_cb=False):
        refused = [name for name in REFUSED if body.get(name)]
        if refused or (body.get("n") or 1) != 1:
            raise HTTPException(400, f"this server has no {', '.join(refused) or 'n above 1'}")
        config = super()._build_generation_config(body, model_generation_config, use_cb=use_cb)
        wanted = body.get("max_completion_tokens") or body.get("max_tokens")
        config.max_new_tokens = int(wanted) if wanted is not None else self.context
        if config.max_new_tokens < 1:
            raise HTTPException(400, "max_tokens must be 1 or more")
        temperature = body.get("temperature")
        if temperature is not None:
            config.do_sample = float(temperature) > 0
            config.temperature = float(temperature) or 1.0
        if body.get("ignore_eos"):
            config.eos_token_id = NO_TOKEN
            config.pad_token_id = config.pad_token_id or 0
        return config

    def _fit(self, inputs, config):
        """Refuse a prompt that fills the context; end the answer where the context ends."""
        prompt = inputs["input_ids"].shape[-1]
        if prompt >= self.context:
            raise HTTPException(
                400, f"the prompt has {prompt} tokens, and the context is {self.context}"
            )
        config.max_new_tokens = min(config.max_new_tokens, self.context - prompt)

    def _streaming(self, request_id, model, processor, model_id, inputs, config, *rest, **more):
        self._fit(inputs, config)
        response = super()._streaming(
            request_id, model, processor, model_id, inputs, config, *rest, **more
        )
        response.body_iterator = to_the_end(response.body_iterator)
        return response

    async def _non_streaming(
        self, request_id, model, processor, model_id, inputs, config, *rest, **more
    ):
        self._fit(inputs, config)
        response = await super()._non_streaming(
            request_id, model, processor, model_id, inputs, config, *rest, **more
        )
        if not config.stop_strings:
            return response
        return JSONResponse(without_stop(json.loads(response.body), config.stop_strings))


class ChatParameters(TransformersCompletionCreateParamsStreaming, total=False):
    ignore_eos: bool


class TextParameters(TransformersTextCompletionCreateParams, total=False):
    ignore_eos: bool


class Chat(Bounded, ChatCompletionHandler):
    _valid_params_class = ChatParameters


class Text(Bounded, CompletionHandler):
    _valid_params_class = TextParameters


class OnlyPaths:
    """ASGI middleware: answers 404 for all but PATHS, such as those that load and unload models."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] in PATHS:
            await self.app(scope, receive, send)
        else:
            await JSONResponse(_error("there is no such path"), 404)(scope, receive, send)


def _error(message):
    return {"error": {"message": message, "type": "invalid_request_error"}}


def build_app(args):
    """The server's ASGI application, its model loaded."""
    Bounded.context = args.context
    models, state = OneModel(args), GenerationState()
    app = build_server(
        models,
        Chat(models, state),
        completion_handler=Text(models, state),
        response_handler=None,
        transcription_handler=None,
        systemone_handler=None,
        generation_state=state,
    )

    @app.exception_handler(HTTPException)
    async def refuse(_request, error):
        return JSONResponse(_error(error.detail), error.status_code)

    app.add_middleware(OnlyPaths)
    if args.api_key_file:
        accept_keys_of(args.api_key_file)
        app.add_middleware(RequireKey)
    return app


def parse(argv):
    parser = argparse.ArgumentParser(prog="serve_transformers", allow_abbrev=False)
    for name in ("--model", "--alias", "--host", "--dtype", "--device"):
        parser.add_argument(name, required=True)
    for name in ("--port", "--context", "--drain-timeout"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--load")
    parser.add_argument("--api-key-file")
    return parser.parse_args(argv)


def main():
    args = parse(sys.argv[1:])
    server = uvicorn.Config(
        build_app(args),
        host=args.host,
        port=args.port,
        timeout_graceful_shutdown=args.drain_timeout,
        access_log=False,
    )
    uvicorn.Server(server).run()


if __name__ == "__main__":
    main()
