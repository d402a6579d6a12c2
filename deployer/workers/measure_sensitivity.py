"""Measure what rounding one part of a model costs, part by part and type by type.

Request: {model: a 16-bit GGUF, text, window, windows, types, folder, imatrix?, groups?, bos?,
threads?}. `types` are llama.cpp's (q4_k, iq4_nl …) or uniform ones: w4_g64 is 4 bits, symmetric, 64
weights a group; w4_g64_zero has a zero point too; w8_channel has one scale a row. `groups` is a
pattern of the names of those that are measured, `folder` has room for a copy of the model.
Response: {groups: [{name, tensors, parameters, bytes: {type: n}, kld: {type: nats}}], rest:
{parameters, bytes}, parameters, tokens, ids_sha256, seconds, engine_version}.

A group is a block's attention (blk.3.attention), the inputs of its feed-forward part (blk.3.ffn) or
its output (blk.3.ffn_down), the embedding or the output layer; what has no weights to round (norms)
is the `rest`. `kld` is the mean KL divergence in nats a token from the 16-bit model when that group
alone is rounded; bytes and kld have f16 too, which costs nothing. A type is left out for a group
where its blocks do not divide the rows of one of its tensors, or where it needs an importance
matrix and there is none.

The rounded weights are written, at 16 bits again, into a copy of the file, and the true ones back
afterwards: so one copy is enough, whatever the number of groups.
"""

import importlib.metadata
import math
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _uniform
import numpy as np
from _ggml_types import GgmlTypes
from _gguf_file import GGUFFile, Q, stored_bytes
from _llama_library import LlamaModel
from _protocol import WorkerError, progress, run
from _scoring import Windows, look
from _weight_groups import group_tensors, read_importance
from gguf.quants import quantize

_UNIFORM = re.compile(r"w([2-8])_(?:g(\d+)|(channel))(_zero)?")
_HALF = "f16"
_NEED_IMATRIX = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M", "IQ3_XXS")


class Rounding:
    """One type: what a tensor takes in it, and its weights as they come back from it."""

    def __init__(self, name, ggml, importance):
        self.name = name
        self._ggml, self._importance = ggml, importance
        uniform = _UNIFORM.fullmatch(name)
        self._kind = None if uniform else _kind(name)
        if uniform:
            bits, group, _, zero = uniform.groups()
            self._uniform = {"bits": int(bits), "symmetric": not zero}
            self._group = int(group) if group else "channel"

    def bytes(self, tensor):
        """What the tensor takes, scales included; None where the type does not fit it."""
        if self._kind is not None:
            missing = self._kind.name in _NEED_IMATRIX and tensor.name not in self._importance
            return None if missing else stored_bytes(tensor.shape, self._kind)
        group = tensor.width if self._group == "channel" else self._group
        if tensor.width % group:
            return None
        bits = _uniform.bits_per_weight(self._uniform["bits"], group, self._uniform["symmetric"])
        return math.ceil(tensor.elements * bits / 8)

    def rounded(self, tensor):
        """The tensor's weights (float32 [height, width]) rounded."""
        result = np.empty((tensor.height, tensor.width), np.float32)
        for first, piece in tensor.chunks():
            result[first : first + len(piece)] = self._piece(tensor, first, piece)
        return result

    def _piece(self, tensor, first, piece):
        if self._kind is None:
            return _uniform.rounded(piece, group=self._group, **self._uniform)
        weights = self._importance.get(tensor.name)
        if weights is None:
            return self._ggml.rounded(piece, self._kind)
        rows = tensor.height // len(weights)  # of one expert
        parts, at = [], 0
        while at < len(piece):  # a chunk may hold rows of several experts
            expert, inside = divmod(first + at, rows)
            count = min(rows - inside, len(piece) - at)
            part = piece[at : at + count]
            parts.append(self._ggml.rounded(part, self._kind, weights[expert]))
            at += count
        return np.concatenate(parts)


class Scratch:
    """A copy of the model's file whose weights can be exchanged and put back."""

    def __init__(self, source, folder):
        self.path = Path(folder) / "model.gguf"
        shutil.copyfile(source.path, self.path)
        self.path.chmod(0o600)
        self._bytes = np.memmap(self.path, np.uint8, "r+")

    def write(self, tensor, values):
        """Exchange the tensor's weights for `values` (float32), stored in the tensor's type."""
        self._put(tensor, quantize(values, tensor.kind).view(np.uint8).reshape(-1))

    def restore(self, tensor):
        self._put(tensor, np.frombuffer(tensor.data, np.uint8))

    def _put(self, tensor, raw):
        self._bytes[tensor.offset : tensor.offset + len(raw)] = raw


class Meter:
    """The KL divergence of what the scratch file holds from what it held at first.

    The model is loaded once: llama.cpp maps the file into memory, and sees what is written to it.
    """

    def __init__(self, request, path, folder):
        self._reference = Path(folder) / "reference"
        self._model = LlamaModel(path, max(int(request["window"]), 256), request.get("threads"))
        self.windows = Windows(request, self._model.tokenize, self._model.begin)
        self._run(keep=self._reference)
        self._seen = False  # whether a change was ever felt

    def divergence(self):
        """Mean KL divergence in nats a token."""
        kld = math.fsum(self._run(reference=self._reference).kld)
        if kld == 0.0 and not self._seen:
            raise WorkerError(
                "llama.cpp does not see changed weights: it has not mapped the file into memory",
                "There may be too little memory, or the temporary folder cannot be mapped.",
            )
        self._seen = True
        return kld / self.windows.tokens

    def _run(self, **folders):
        def logits(ids):  # hidden states tell nothing that is asked for here
            return ((rows, None) for rows, _ in self._model.logits(ids))

        return look(self.windows, logits, **folders)


def main(request):
    started = time.monotonic()
    source = GGUFFile(request["model"])
    ggml = GgmlTypes(request.get("threads"))
    importance = read_importance(request.get("imatrix"))
    types = [Rounding(name, ggml, importance) for name in request["types"]]
    groups = group_tensors(source, request.get("groups"))
    progress(note="loading the model")
    with tempfile.TemporaryDirectory(dir=request["folder"]) as folder:
        scratch = Scratch(source, folder)
        meter = Meter(request, scratch.path, folder)
        measured = _measured(groups, types, meter, scratch)
    parameters = sum(tensor.elements for tensor in source.tensors.values())
    in_groups = {tensor.name for tensors in groups.values() for tensor in tensors}
    rest = [tensor for name, tensor in source.tensors.items() if name not in in_groups]
    return {
        "groups": measured,
        "rest": {
            "parameters": sum(tensor.elements for tensor in rest),
            "bytes": sum(len(tensor.data) for tensor in rest),
        },
        "parameters": parameters,
        "tokens": meter.windows.tokens,
        "ids_sha256": meter.windows.ids_sha256,
        "seconds": time.monotonic() - started,
        "engine_version": f"xllamacpp {importlib.metadata.version('xllamacpp')}",
    }


def _measured(groups, types, meter, scratch):
    """The table: one entry a group."""
    fitting = {name: _fitting(tensors, types) for name, tensors in groups.items()}
    total = sum(len(kinds) for kinds in fitting.values())
    done, table = 0, []
    for name, tensors in groups.items():
        entry = {
            "name": name,
            "tensors": [tensor.name for tensor in tensors],
            "parameters": sum(tensor.elements for tensor in tensors),
            "bytes": {_HALF: sum(len(tensor.data) for tensor in tensors)},
            "kld": {_HALF: 0.0},
        }
        for kind, size in fitting[name]:
            progress(done, total, f"{name} as {kind.name}")
            for tensor in tensors:
                scratch.write(tensor, kind.rounded(tensor))
            entry["bytes"][kind.name] = size
            entry["kld"][kind.name] = meter.divergence()
            done += 1
        for tensor in tensors:
            scratch.restore(tensor)
        table.append(entry)
    progress(done, total)
    return table


def _fitting(tensors, types):
    """[(type, bytes)] of the types that fit every one of the tensors."""
    sizes = [(kind, [kind.bytes(tensor) for tensor in tensors]) for kind in types]
    return [(kind, sum(each)) for kind, each in sizes if None not in each]


def _kind(name):
    try:
        return Q[name.upper()]
    except KeyError as error:
        raise WorkerError(
            f"there is no type {name}", "llama.cpp's, or for example w4_g64."
        ) from error


if __name__ == "__main__":
    run(main)
