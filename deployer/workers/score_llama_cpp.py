"""Score a text with a GGUF model, token by token, in the engine that will serve it.

Request: {model, text | ids, tokens, bos?, threads?, sample_prompt?, strings?, messages?}. `tokens`
is the number of tokens to score, from the front of the text; `bos`: start with BOS (null: where the
model has one). Without BOS the first token of the text cannot be scored, and one more is taken.
Response: {ids, ids_sha256, bos, nll, top1, perplexity, tokens, seconds, load_seconds, sample,
engine_version, parity: object | null}. nll[i] is -ln p(token | all before it) in nats; top1[i] is
the id the model would have chosen there; `tokens` is less than asked only where the text is too
short; `parity` is what `checkpoint_parity` answers, where `strings` are given.

The server has no prompt log-probabilities. So every position is asked for one token, and that
token is forced by a bias: the log-probability it reports is the one before the bias.
"""

import importlib.metadata
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _gguf_parity
from _llama_server import LlamaServer
from _protocol import WorkerError, finite, progress, run
from _scoring import SAMPLE_PROMPT, SAMPLE_TOKENS, chosen_ids, report

FORCE = 1e6


def main(request):
    progress(note="loading the model")
    server = LlamaServer(
        request["model"],
        n_ctx=max(512, int(request["tokens"]) + SAMPLE_TOKENS + 64),
        threads=request.get("threads"),
    )
    prefix, ids = chosen_ids(request, server.tokenize, server.special_id("bos_token"))
    started = time.monotonic()
    nll, top1 = [], []
    for position in range(0 if prefix else 1, len(ids)):
        loss, choice = _score(server, prefix + ids[:position], ids[position], position)
        nll.append(loss)
        top1.append(choice)
        if position % 16 == 0:
            progress(position, len(ids), "scoring")
    return {
        **report(prefix, ids, nll, top1),
        "seconds": time.monotonic() - started,
        "load_seconds": server.load_seconds,
        "sample": _sample(server, request.get("sample_prompt") or SAMPLE_PROMPT),
        "engine_version": f"xllamacpp {importlib.metadata.version('xllamacpp')}",
        "parity": _parity(server, request),
    }


def _parity(server, request):
    """The answer to the parity question, where one is asked."""
    if "strings" not in request:
        return None
    return _gguf_parity.answer(server, request["model"], request["strings"], request["messages"])


def _score(server, prompt, token, position):
    """(-ln p(token | prompt), the model's own first choice)."""
    answer = server.ask(
        "POST",
        "/completion",
        {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": 1,
            "logit_bias": [[token, FORCE]],
            "temperature": 0,
            "samplers": ["temperature"],
            "cache_prompt": True,
            "id_slot": 0,
        },
    )
    (scored,) = answer["completion_probabilities"]
    if scored["id"] != token:
        raise WorkerError(f"the engine gave token {scored['id']} where {token} was forced")
    loss = -finite(scored["logprob"], f"the log-probability at position {position}")
    return loss, scored["top_logprobs"][0]["id"]


def _sample(server, prompt):
    """What the model goes on with, greedily: readable text unless the weights are garbage."""
    question = {"prompt": prompt, "n_predict": SAMPLE_TOKENS, "temperature": 0}
    return server.ask("POST", "/completion", question)["content"]


if __name__ == "__main__":
    run(main)
