"""Score a text with a GGUF model, token by token, in llama.cpp.

Request: {model, text | ids, window, windows?, bos?, threads?, keep?, reference?, sample_prompt?,
strings?, messages?}. `window` and `windows`: see _scoring; `bos`: start with BOS (null: where the
model has one); `keep` and `reference`: folders, see _distributions. Response: {ids, ids_sha256,
bos, window, windows, tokens, nll, top1, kld, cosine, perplexity, peak_bytes, seconds,
load_seconds, sample, engine_version, parity: object | null}. Of every scored token: nll is
-ln p(token | all before it in its window) in nats, top1 the id the model would have chosen, kld and
cosine the distance from the reference. `peak_bytes` is what this process held of memory at most.
`parity` is what `checkpoint_parity` answers, where `strings` are given.

The logits come from llama.cpp as a library: its server has no prompt log-probabilities.
"""

import importlib.metadata
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _gguf_parity
from _llama_library import LlamaModel
from _protocol import progress, run
from _scoring import SAMPLE_PROMPT, SAMPLE_TOKENS, Windows, score


def main(request):
    progress(note="loading the model")
    started = time.monotonic()
    n_ctx = max(int(request["window"]), 256)
    model = LlamaModel(request["model"], n_ctx, request.get("threads"))
    load_seconds = time.monotonic() - started
    parity = None
    if "strings" in request:
        strings, messages = request["strings"], request["messages"]
        parity = _gguf_parity.answer(model, request["model"], strings, messages)
    windows = Windows(request, model.tokenize, model.begin)
    started = time.monotonic()
    scores = score(windows, model.logits, request)
    seconds = time.monotonic() - started
    prompt = windows.prefix + model.tokenize(request.get("sample_prompt") or SAMPLE_PROMPT)
    return {
        **scores,
        "seconds": seconds,
        "load_seconds": load_seconds,
        "sample": model.text(model.greedy(prompt, SAMPLE_TOKENS)),
        "engine_version": f"xllamacpp {importlib.metadata.version('xllamacpp')}",
        "parity": parity,
    }


if __name__ == "__main__":
    run(main)
