"""What scoring a text is in every engine: which token ids are scored, and how that is reported."""

import hashlib
import json
import math

from _protocol import WorkerError

SAMPLE_TOKENS = 24
SAMPLE_PROMPT = "The capital of France is"
CHARACTERS_PER_TOKEN = 32


def chosen_ids(request, encode, begin):
    """(prefix, ids): the BOS token that stands before the text or nothing, and the text's front.

    `encode` gives a text's ids without special tokens, `begin` is the model's BOS or None. With a
    prefix every id is scored, without one all but the first.
    """
    prefix = _prefix(request.get("bos"), begin)
    wanted = int(request["tokens"]) + (0 if prefix else 1)
    ids = (request.get("ids") or _front(encode, request["text"], wanted))[:wanted]
    if len(ids) <= (0 if prefix else 1):
        raise WorkerError("the text to score has no tokens", "Give a longer text.")
    return prefix, ids


def report(prefix, ids, nll, top1):
    """The part of the response that follows from the scores."""
    return {
        "ids": ids,
        "ids_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        "bos": bool(prefix),
        "nll": nll,
        "top1": top1,
        "perplexity": math.exp(min(math.fsum(nll) / len(nll), 700.0)),
        "tokens": len(nll),
    }


def _prefix(bos, begin):
    if bos is False:
        return []
    if begin is None and bos:
        raise WorkerError("the model has no BOS token", "Set bos to null or false.")
    return [] if begin is None else [begin]


def _front(encode, text, wanted):
    """The first `wanted` token ids; a long text is cut first, generously."""
    ids = encode(text[: wanted * CHARACTERS_PER_TOKEN])
    return ids if len(ids) >= wanted else encode(text)
