"""GPTQ by llm-compressor alone, as its README does it: run by the `llm-compressor` toolchain.

python quantize_gptq.py CHECKPOINT TARGET TEXT SAMPLES LENGTH GROUP_SIZE
"""

import sys
from pathlib import Path

from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    checkpoint, target, text = sys.argv[1:4]
    samples, length, group_size = map(int, sys.argv[4:7])
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer.encode(Path(text).read_text(encoding="utf-8"), add_special_tokens=False)
    pieces = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
    chosen = [pieces[n * len(pieces) // samples] for n in range(samples)]
    weights = {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
        "group_size": group_size,
    }  # fmt: skip
    oneshot(
        model=model,
        processor=tokenizer,
        dataset=Dataset.from_dict(
            {"input_ids": chosen, "attention_mask": [[1] * length] * samples}
        ),
        recipe=GPTQModifier(
            config_groups={"group_0": {"targets": ["Linear"], "weights": weights}},
            ignore=["lm_head"],
            actorder=None,
        ),
        num_calibration_samples=samples,
        max_seq_length=length,
    )
    model.save_pretrained(target, save_compressed=True)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    main()
