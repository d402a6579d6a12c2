"""Which linear layers of a model are quantized, whether the group size fits, and what is told."""

import re
import time
from importlib.metadata import version

from _protocol import WorkerError

HEAD = "lm_head"


def linear_widths(model):
    """Name -> (input width, output width) of every linear layer of a torch model."""
    from torch import nn

    return {
        name: (layer.in_features, layer.out_features)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    }


def chosen_layers(names, ignore):
    """The layers of `names` that no entry of `ignore` matches: whole names, or re:PATTERN.

    Raises WorkerError for an entry that matches none, since that is a spelling mistake.
    """
    left = list(names)
    for entry in ignore:
        matched = {name for name in names if _matches(entry, name)}
        if not matched and entry != HEAD:
            raise WorkerError(
                f"quantization.ignore names {entry!r}, which is no linear layer of the model",
                f"Write whole names, such as {next(iter(names), HEAD)}, or re:PATTERN.",
            )
        left = [name for name in left if name not in matched]
    if not left:
        raise WorkerError("quantization.ignore leaves no layer to quantize", "Ignore fewer layers.")
    return left


def check_groups(widths, chosen, group_size):
    """Raise WorkerError where `group_size` does not divide the input width of a chosen layer."""
    if group_size == -1:
        return
    unfit = [name for name in chosen if widths[name][0] % group_size]
    if unfit:
        more = f" and of {len(unfit) - 1} more layers" if len(unfit) > 1 else ""
        raise WorkerError(
            f"group_size {group_size} does not divide {widths[unfit[0]][0]}, the input width of "
            f"{unfit[0]}{more}",
            "Set quantization.group_size to a divisor, for example 64 or 32.",
        )


def report(tool, distributions, widths, layers, samples, started):
    """What every worker that quantizes a checkpoint answers.

    `distributions` are the packages whose versions made the weights, `widths` all linear layers,
    `layers` those that were quantized; `started` is a time of `time.monotonic`.
    """
    return {
        "tool": tool,
        "versions": {name: version(name) for name in distributions},
        "layers_quantized": len(layers),
        "layers_ignored": sorted(set(widths) - set(layers)),
        "samples": len(samples),
        "tokens": sum(map(len, samples)),
        "seconds": time.monotonic() - started,
    }


def _matches(entry, name):
    if entry.startswith("re:"):
        return re.match(entry.removeprefix("re:"), name) is not None
    return entry == name
