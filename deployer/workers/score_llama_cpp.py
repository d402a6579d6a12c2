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

import hashlib
import importlib.metadata
import json
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _gguf_parity
from _llama_server import LlamaServer
from _protocol import WorkerError, finite, progress, run

FORCE = 1e6
SAMPLE_TOKENS = 24
SAMPLE_PROMPT = "The capital of France is"
CHARACTERS_PER_TOKEN = 32


def main(request):
    wanted = int(request["tokens"])
    progress(note="loading the model")
    server = LlamaServer(
        request["model"],
        n_ctx=max(512, wanted + SAMPLE_TOKENS + 64),
        threads=request.get("threads"),
    )
    prefix = _prefix(server, request.get("bos"))
    first = 0 if prefix else 1
    ids = request.get("ids") or _front(server, request["text"], first + wanted)
    ids = ids[: first + wanted]
    if len(ids) <= first:
        raise WorkerError("the text to score has no tokens", "Give a longer text.")
    started = time.monotonic()
    nll, top1 = [], []
    for position in range(first, len(ids)):
        loss, choice = _score(server, prefix + ids[:position], ids[position], position)
        nll.append(loss)
        top1.append(choice)
        if position % 16 == 0:
            progress(position, len(ids), "scoring")
    return {
        "ids": ids,
        "ids_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        "bos": bool(prefix),
        "nll": nll,
        "top1": top1,
        "perplexity": math.exp(min(math.fsum(nll) / len(nll), 700.0)),
        "tokens": len(nll),
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


def _front(server, text, wanted):
    """The first `wanted` token ids; a long text is cut first, generously."""
    ids = server.tokenize(text[: wanted * CHARACTERS_PER_TOKEN])
    return ids if len(ids) >= wanted else server.tokenize(text)


def _prefix(server, bos):
    if bos is False:
        return []
    begin = server.special_id("bos_token")
    if begin is None and bos:
        raise WorkerError("the model has no BOS token", "Set bos to null or false.")
    return [] if begin is None else [begin]


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
