"""GPTQ of a checkpoint with AutoGPTQ, which needs an NVIDIA GPU: 4 or 8 bits.

Request: {source, target, method: gptq, scheme: w4a16|w8a16, device: cuda, knobs: {group_size,
sym, desc_act, damp_percent, ...}, calibration: {path, kind, samples, length}}. Response: {tool,
versions, layers_quantized, layers_ignored: [name], samples, tokens, seconds}. The target gets
config.json, the weights, and byte-for-byte copies of the source's tokenizer and licence.

AutoGPTQ keeps the model in CPU memory and one layer at a time on the GPU. It has no setting for
layers to leave out: it quantizes all of the decoder's, and never the head.
"""

import logging
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _calibration import load_samples
from _checkpoint_files import check_theta, finish, for_transformers_4, read_config
from _layers import HEAD, check_groups, chosen_layers, linear_widths, report
from _protocol import WorkerError, progress, run

DISTRIBUTIONS = ("auto-gptq", "torch", "transformers")
"""Packages whose versions are told."""

_LAYER = re.compile(r"Start quantizing layer (\d+)/(\d+)")


class LayerLines(logging.Handler):
    """Tells of progress by the lines that AutoGPTQ logs."""

    def emit(self, record):
        found = _LAYER.search(record.getMessage())
        if found:
            layer, total = int(found[1]), int(found[2])
            progress(layer - 1, total, f"GPTQ: layer {layer} of {total}")


def main(request):
    started = time.monotonic()
    progress(note="loading AutoGPTQ")
    import torch
    from transformers import AutoTokenizer

    if not torch.cuda.is_available():
        raise WorkerError(
            "auto-gptq needs CUDA to quantize, and this machine shows no GPU",
            "Use tool: llm-compressor, which quantizes on a CPU too.",
        )
    with for_transformers_4(request["source"]) as folder:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        samples = load_samples(tokenizer, request["calibration"])
        model = _load(folder, request)
        check_theta(read_config(folder), model.model.config)
        widths = linear_widths(model.model)
        chosen = chosen_layers(list(widths), [HEAD])
        check_groups(widths, chosen, request["knobs"]["group_size"])
        logging.getLogger("auto_gptq.modeling._base").addHandler(LayerLines())
        model.quantize([
            {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
            for ids in samples
        ])  # fmt: skip
        progress(note="writing the quantized weights")
        model.save_quantized(request["target"], use_safetensors=True)
    tied = bool(model.model.config.tie_word_embeddings)
    layers = finish(request["source"], request["target"], "float16", tied)
    return report("auto-gptq", DISTRIBUTIONS, widths, layers, samples, started)


def _load(folder, request):
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig

    knobs = request["knobs"]
    settings = BaseQuantizeConfig(
        bits=4 if request["scheme"].startswith("w4") else 8,
        group_size=knobs["group_size"],
        damp_percent=knobs["damp_percent"],
        desc_act=knobs["desc_act"],
        sym=knobs["sym"],
        model_file_base_name="model",
    )
    try:
        return AutoGPTQForCausalLM.from_pretrained(str(folder), settings)
    except TypeError as error:
        raise WorkerError(
            f"auto-gptq does not know this model: {error}", "Use tool: llm-compressor."
        ) from error


if __name__ == "__main__":
    run(main)
