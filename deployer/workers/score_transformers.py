"""Score a text with a checkpoint, token by token, in transformers.

Request: {model, text | ids, window, windows?, bos?, dtype?, load?, keep?, reference?,
sample_prompt?, strings?, messages?}. `model` is a checkpoint's folder; `window` and `windows`:
see _scoring; `bos`: start with BOS (null: where the tokenizer has one); `load`: quantized while
loading, see _transformers_model; `keep` and `reference`: folders, see _distributions. The response
is that of score_llama_cpp, and `memory`: what the weights take, see `in_memory`.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _checkpoint_text import check_length, encode, load_tokenizer, parity, read_config
from _protocol import progress, run
from _scoring import SAMPLE_PROMPT, SAMPLE_TOKENS, Windows, score
from _transformers_model import in_memory, load_model

STEP_ROWS = 128
"""Positions handed over at once: each has a 32-bit logit for every word of the vocabulary."""
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def main(request):
    os.environ.update(ENVIRONMENT)
    folder = Path(request["model"])
    progress(note="loading the tokenizer")
    answer = parity(request)
    tokenizer = load_tokenizer(folder)
    windows = Windows(request, lambda text: encode(tokenizer, text), tokenizer.bos_token_id)
    sample_ids = windows.prefix + encode(tokenizer, request.get("sample_prompt") or SAMPLE_PROMPT)
    length = max(windows.window, len(sample_ids) + SAMPLE_TOKENS)
    check_length(windows.window, length, read_config(folder).get("max_position_embeddings"))
    progress(note="loading the model")
    started = time.monotonic()
    model = load_model(folder, request.get("load"), request.get("dtype"))
    load_seconds = time.monotonic() - started
    started = time.monotonic()
    scores = score(windows, _Logits(model).window, request)
    seconds = time.monotonic() - started
    return {
        **scores,
        "seconds": seconds,
        "load_seconds": load_seconds,
        "sample": _sample(model, tokenizer, sample_ids),
        "engine_version": _version(),
        "parity": answer,
        "memory": in_memory(model, folder),
    }


class _Logits:
    """Computes a window, and takes what goes into the output layer on the way."""

    def __init__(self, model):
        self._model = model
        self._hidden = None
        model.get_output_embeddings().register_forward_pre_hook(self._take)

    def _take(self, _module, inputs):
        self._hidden = inputs[0][0]

    def window(self, ids):
        """Yield (logits, hidden) of the positions of a window, in order, as float32 arrays."""
        import torch

        with torch.no_grad():
            asked = torch.tensor([ids[:-1]], device=self._model.device)
            logits = self._model(input_ids=asked, use_cache=False).logits[0]
        for start in range(0, len(logits), STEP_ROWS):
            rows = slice(start, start + STEP_ROWS)
            yield logits[rows].float().cpu().numpy(), self._hidden[rows].float().cpu().numpy()


def _sample(model, tokenizer, ids):
    """What the model goes on with, greedily: readable text unless the weights are garbage."""
    import torch

    asked = torch.tensor([ids], device=model.device)
    with torch.no_grad():
        made = model.generate(
            asked,
            attention_mask=torch.ones_like(asked),
            max_new_tokens=SAMPLE_TOKENS,
            do_sample=False,
        )
    return tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)


def _version():
    import transformers

    return f"transformers {transformers.__version__}"


if __name__ == "__main__":
    run(main)
