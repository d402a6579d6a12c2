"""AWQ of a checkpoint with AutoAWQ: 4 bits with zero points, in groups.

Request: {source, target, method: awq, scheme: w4a16, device, knobs: {group_size, clip, ignore,
...}, calibration: {path, kind, samples, length}}. Response: {tool, versions, layers_quantized,
layers_ignored: [name], samples, tokens, seconds}. The target gets config.json, the weights, and
byte-for-byte copies of the source's tokenizer and licence.

AutoAWQ 0.2.9 corrupts weights on a CPU: before it tries 20 scales on a layer it saves the weights
with `.cpu()`, which is no copy there, so that every trial multiplies what should be restored. It
reports no error, and the model it saves answers with garbage. `CopyingQuantizer` makes the copies.
"""

import sys
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _calibration import load_samples
from _checkpoint_files import check_theta, finish, for_transformers_4, read_config
from _layers import HEAD, check_groups, chosen_layers, linear_widths, report
from _protocol import WorkerError, progress, run

DISTRIBUTIONS = ("autoawq", "torch", "transformers")
"""Packages whose versions are told."""

AT_ONCE = 16384
"""Calibration tokens that go through a layer at once; more take more memory than they save time."""


def main(request):
    started = time.monotonic()
    progress(note="loading AutoAWQ")
    with for_transformers_4(request["source"]) as folder:
        samples = load_samples(_tokenizer(folder), request["calibration"])
        model = _load(folder)
        check_theta(read_config(folder), model.model.config)
        widths = linear_widths(model.model)
        _quantize(model, widths, request["knobs"], samples)
        progress(note="writing the quantized weights")
        model.model.half()
        model.save_quantized(str(request["target"]), shard_size="5GB")
    tied = bool(model.model.config.tie_word_embeddings)
    layers = finish(request["source"], request["target"], "float16", tied)
    return report("autoawq", DISTRIBUTIONS, widths, layers, samples, started)


def _tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


def _load(folder):
    """The model with its weights in CPU memory; AutoAWQ moves layer by layer to a GPU."""
    import torch
    from awq import AutoAWQForCausalLM
    from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP

    kind = read_config(folder).get("model_type")
    if kind not in AWQ_CAUSAL_LM_MODEL_MAP:
        raise WorkerError(
            f"autoawq does not know models of type {kind}", "Use tool: llm-compressor."
        )
    # On a CPU arithmetic in 32 bits is faster than in emulated 16-bit floats, and exact.
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    return AutoAWQForCausalLM.from_pretrained(
        str(folder), torch_dtype=dtype, trust_remote_code=False, device_map=None
    )


def _quantize(model, widths, knobs, samples):
    chosen = chosen_layers(list(widths), [*knobs["ignore"], HEAD])
    check_groups(widths, chosen, knobs["group_size"])
    settings = {
        "zero_point": True,
        "q_group_size": knobs["group_size"],
        "w_bit": 4,
        "version": "GEMM",
        "modules_to_not_convert": left_out(list(widths), chosen) or None,
    }
    length = len(samples[0])
    together = max(1, AT_ONCE // length)
    _tell_progress()
    model.quantize(
        None,
        quant_config=settings,
        calib_data=samples,
        apply_clip=knobs["clip"],
        n_parallel_calib_samples=together if together < len(samples) else None,
        max_calib_samples=len(samples),
        max_calib_seq_len=length,
        quantizer_cls=copying_quantizer(),
    )


def left_out(names, chosen):
    """What AutoAWQ must not convert, in its words: a part of every decoder layer.

    `names` are all linear layers, `chosen` those to quantize. AutoAWQ knows no single layers, so
    what is left out must be left out of all; else WorkerError.
    """
    parts = {_part(name) for name in set(names) - set(chosen) - {HEAD}}
    mixed = sorted(name for name in chosen if any(part in _part(name) for part in parts))
    if mixed:
        raise WorkerError(
            f"autoawq leaves a part out of all layers or of none, and {mixed[0]} is not ignored",
            "Use tool: llm-compressor, or a pattern for all layers, such as re:.*down_proj.",
        )
    return sorted(parts)


def _part(name):
    """The name of a linear layer within its decoder layer: "mlp.up_proj"."""
    words = name.split(".")
    numbers = [place for place, word in enumerate(words) if word.isdigit()]
    return ".".join(words[numbers[0] + 1 :]) if numbers else name


def copying_quantizer():
    """AutoAWQ's quantizer, mended: what it restores after each trial is a copy of the weights."""
    from awq.quantize.quantizer import AwqQuantizer

    class CopyingQuantizer(AwqQuantizer):
        def _compute_best_scale(self, x, w_mean, x_mean, module2inspect, *rest, **named):
            with copied_state(module2inspect):
                return super()._compute_best_scale(
                    x, w_mean, x_mean, module2inspect, *rest, **named
                )

    return CopyingQuantizer


@contextmanager
def copied_state(module):
    """While open, `module.state_dict()` gives copies, not the tensors themselves."""
    original = module.state_dict
    module.state_dict = lambda *args, **named: {
        name: tensor.clone() for name, tensor in original(*args, **named).items()
    }
    try:
        yield
    finally:
        del module.state_dict


def _tell_progress():
    """Let AutoAWQ's loop over the decoder layers tell how far it is."""
    from awq.quantize import quantizer

    def bar(layers, desc=None):
        total = len(layers)
        for done, layer in enumerate(layers):
            progress(done, total, f"AWQ: layer {done + 1} of {total}")
            yield layer
        progress(total, total)

    quantizer.tqdm = bar


if __name__ == "__main__":
    run(main)
