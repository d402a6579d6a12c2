"""AWQ by AutoAWQ alone, as its README does it: run by the `autoawq` toolchain's Python.

    python quantize_awq.py CHECKPOINT TARGET TEXT SAMPLES LENGTH GROUP_SIZE

Beyond the README: 32-bit arithmetic, no clip search, and weights that are copied before they are
tried on, since AutoAWQ 0.2.9 corrupts them on a CPU otherwise. deployer does the same.
"""

import sys
from pathlib import Path

import torch
from awq import AutoAWQForCausalLM
from awq.quantize.quantizer import AwqQuantizer
from transformers import AutoTokenizer


class Copying(AwqQuantizer):
    def _compute_best_scale(self, x, w_mean, x_mean, module2inspect, *rest, **named):
        state_dict = module2inspect.state_dict
        module2inspect.state_dict = lambda: {k: v.clone() for k, v in state_dict().items()}
        try:
            return super()._compute_best_scale(x, w_mean, x_mean, module2inspect, *rest, **named)
        finally:
            del module2inspect.state_dict


def main():
    checkpoint, target, text = sys.argv[1:4]
    samples, length, group_size = map(int, sys.argv[4:7])
    model = AutoAWQForCausalLM.from_pretrained(checkpoint, torch_dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer.encode(Path(text).read_text(encoding="utf-8"), add_special_tokens=False)
    pieces = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
    model.quantize(
        tokenizer,
        quant_config={
            "zero_point": True, "q_group_size": group_size, "w_bit": 4, "version": "GEMM",
        },
        calib_data=[pieces[n * len(pieces) // samples] for n in range(samples)],
        max_calib_samples=samples,
        max_calib_seq_len=length,
        apply_clip=False,
        quantizer_cls=Copying,
    )  # fmt: skip
    model.model.half()
    model.save_quantized(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    main()
