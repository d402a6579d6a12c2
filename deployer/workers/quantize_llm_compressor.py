"""AWQ or GPTQ of a checkpoint with llm-compressor, stored as compressed-tensors.

Request: {source, target, method: awq|gptq, scheme: w4a16|w8a16|w8a8, device: cpu|cuda,
knobs: {group_size, zero_point | sym, desc_act, damp_percent; ignore, offload},
calibration: {path, kind, samples, length}}. Response: {tool, versions, layers_quantized,
layers_ignored: [name], samples, tokens, seconds}. The target gets config.json, the weights, and
byte-for-byte copies of the source's tokenizer and licence.

w8a8 is SmoothQuant, then GPTQ: 8-bit weights with a scale per output channel, and activations
that are rounded to 8 bits token by token while the model runs.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _calibration import load_samples
from _checkpoint_files import check_theta, finish, read_config
from _layers import check_groups, chosen_layers, linear_widths, report
from _protocol import progress, run

DISTRIBUTIONS = ("llmcompressor", "compressed-tensors", "torch", "transformers")
"""Packages whose versions are told."""

SMOOTHING = 0.8
"""How much of the activations' outliers SmoothQuant moves into the weights, 0 to 1."""


def main(request):
    started = time.monotonic()
    config = read_config(request["source"])
    progress(note="loading llm-compressor")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["source"], trust_remote_code=False)
    samples = load_samples(tokenizer, request["calibration"])
    model = _load(request)
    check_theta(config, model.config)
    widths, knobs = linear_widths(model), request["knobs"]
    check_groups(widths, chosen_layers(list(widths), knobs["ignore"]), knobs["group_size"])
    _quantize(model, tokenizer, request, samples)
    progress(note="writing the quantized weights")
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    _store_as(model, dtype)
    model.save_pretrained(request["target"], save_compressed=True, max_shard_size="5GB")
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    layers = finish(request["source"], request["target"], dtype, tied)
    return report("llm-compressor", DISTRIBUTIONS, widths, layers, samples, started)


def _load(request):
    """The model: on the GPU, or in CPU memory where layers go to the GPU one at a time.

    A processor that has no arithmetic in bfloat16 emulates it, which takes two to three times as
    long as 32 bits.
    """
    import torch
    from transformers import AutoModelForCausalLM

    emulated = request["device"] == "cpu" and not torch.cpu._is_avx512_bf16_supported()
    model = AutoModelForCausalLM.from_pretrained(
        request["source"], dtype=torch.float32 if emulated else "auto", trust_remote_code=False
    )
    whole = request["device"] == "cuda" and not request["knobs"]["offload"]
    return model.to("cuda") if whole else model


def _store_as(model, dtype):
    """Have everything written in `dtype` (a name) but the weights that are about to be packed.

    Those are still multiples of their scale; rounded to 16 bits they could be packed wrongly.
    """
    import torch

    for module in model.modules():
        packed = getattr(module, "quantization_scheme", None) is not None
        for name, tensor in module.named_parameters(recurse=False):
            if tensor.is_floating_point() and not (packed and name == "weight"):
                tensor.data = tensor.data.to(getattr(torch, dtype))


def _quantize(model, tokenizer, request, samples):
    import torch
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache
    from torch.utils.data import DataLoader

    if not torch.accelerator.is_available():
        # It pins memory for copies to an accelerator without asking whether there is one.
        IntermediatesCache.pin_memory = lambda *_, **__: None
    steps = modifiers(request)
    _tell_progress(model, request)
    rows = [
        {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)}
        for ids in samples
    ]
    oneshot(
        model=model,
        processor=tokenizer,
        recipe=steps,
        dataset=DataLoader(rows, batch_size=1),
        num_calibration_samples=len(rows),
        max_seq_length=len(samples[0]),
    )


def modifiers(request):
    """What is done to the model, in order."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    knobs = request["knobs"]
    groups = {"group_0": config_group(request["scheme"], knobs)}
    common = {"config_groups": groups, "ignore": knobs["ignore"]}
    if request["method"] == "awq":
        import torch

        offload = {"offload_device": torch.device("cpu")} if knobs["offload"] else {}
        return [_awq_modifier()(**offload), QuantizationModifier(**common)]
    actorder = "static" if knobs["desc_act"] else None
    gptq = GPTQModifier(**common, dampening_frac=knobs["damp_percent"], actorder=actorder)
    if request["scheme"] == "w8a8":
        return [SmoothQuantModifier(smoothing_strength=SMOOTHING), gptq]
    return [gptq]


def _awq_modifier():
    """AWQ that leaves layers alone whose successors all stay at 16 bits.

    The library scales a layer also where it is quantized itself and what reads its output is not,
    and then divides by the number of quantized readers, which is zero.
    """
    from llmcompressor.modifiers.transform.awq import AWQModifier as Original

    class AWQModifier(Original):
        def _set_resolved_mappings(self, model):
            super()._set_resolved_mappings(model)
            self._resolved_mappings = [
                mapping
                for mapping in self._resolved_mappings
                if any(hasattr(layer, "quantization_scheme") for layer in mapping.balance_layers)
            ]

    return AWQModifier


def config_group(scheme, knobs):
    """compressed-tensors' description of how the linear layers are stored."""
    weights = {
        "num_bits": 4 if scheme.startswith("w4") else 8,
        "type": "int",
        "symmetric": knobs["sym"] if "sym" in knobs else not knobs["zero_point"],
        "dynamic": False,
    }
    if knobs["group_size"] == -1:
        weights["strategy"] = "channel"
    else:
        weights |= {"strategy": "group", "group_size": knobs["group_size"]}
    group = {"targets": ["Linear"], "weights": weights}
    if scheme == "w8a8":
        group["input_activations"] = {
            "num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token",
        }  # fmt: skip
    return group


def _tell_progress(model, request):
    """Let llm-compressor's loop over the decoder layers tell how far it is.

    It goes through all layers, and the head, once for each step that needs calibration.
    """
    from llmcompressor.core import LifecycleCallbacks

    names = {"awq": ["AWQ"], "gptq": ["GPTQ"]}[request["method"]]
    names = ["SmoothQuant", *names] if request["scheme"] == "w8a8" else names
    layers = model.config.get_text_config().num_hidden_layers + 1
    total, ended, original = layers * len(names), 0, LifecycleCallbacks.sequential_epoch_end

    def told(*args, **named):
        nonlocal ended
        result = original(*args, **named)
        ended = min(ended + 1, total)
        step = names[(ended - 1) // layers]
        progress(ended, total, f"{step}: layer {(ended - 1) % layers + 1} of {layers}")
        return result

    LifecycleCallbacks.sequential_epoch_end = told


if __name__ == "__main__":
    run(main)
