"""What the logits at each scored position say: loss, first choice, and distance from a reference.

A reference is what `keep` left of an earlier run over the same ids, most likely the 16-bit model's:

    logits.f16   float16 [tokens, vocabulary]: each row's logits, less its largest
    hidden.f16   float16 [tokens, width]: the last hidden states; not where the engine has none
    shape.json   {tokens, vocabulary, width, ids_sha256}

Its distributions are the softmax of what was kept, computed in 32 bits and summed in 64.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy
from _protocol import WorkerError, finite

BLOCK_ROWS = 8
"""Rows computed at once: as many as stay in the processor's cache; 32 take three times as long."""
MOST_THREADS = 8
"""Blocks computed side by side at most; memory is the limit sooner than processors."""
_LOWEST = numpy.float32(-65504.0)
_REBIAS = numpy.float32(2.0**112)
"""What the exponents of float32 and float16 are apart."""
KEPT_BYTES = 2 << 30
"""Logits are kept of so many tokens as fit into this; of the others only the losses are known."""
LOGITS, HIDDEN, SHAPE = "logits.f16", "hidden.f16", "shape.json"


class Distributions:
    """Takes rows of logits in order, and keeps what they say of each position.

    `nll`: -ln p of the true token in nats; `top1`: the id of the model's first choice; `kld`:
    KL(reference || this) in nats and `cosine`: similarity of the last hidden states, both None
    without a reference (`cosine` also where either engine has no hidden states).
    """

    def __init__(self, ids_sha256, keep=None, reference=None):
        self.nll, self.top1 = [], []
        self._ids = ids_sha256
        self._kept = _Kept(Path(keep)) if keep else None
        self._reference = _Reference(Path(reference), ids_sha256) if reference else None
        self.kld = [] if reference else None
        self.cosine = [] if self._reference and self._reference.width else None
        self._pool = ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0))))

    def add(self, logits, hidden, targets):
        """Take float32 `logits` [rows, vocabulary] and `hidden` [rows, width] or None.

        `targets` are the true ids of the rows. Raises WorkerError where a loss is not finite.
        """
        if self._reference:
            self._reference.check(logits.shape[1])
        if hidden is None:
            self.cosine = None
        first = len(self.nll)

        def look(start):
            rows = slice(start, start + BLOCK_ROWS)
            states = None if hidden is None else hidden[rows]
            return self._look(logits[rows], states, targets[rows], first + start)

        for said in self._pool.map(look, range(0, len(targets), BLOCK_ROWS)):
            self._take(said)

    def _look(self, logits, hidden, targets, first):
        """What the rows of one block say; the first of them is the scored token number `first`."""
        rows = numpy.arange(len(logits))
        with numpy.errstate(invalid="ignore"):  # garbage is found by its loss
            top1 = logits.argmax(axis=1)
            shifted = logits - logits[rows, top1][:, None]
            log_total = numpy.log(numpy.exp(shifted).sum(axis=1, dtype=numpy.float64))
            nll = (log_total - shifted[rows, targets]).tolist()
        said = _Said(nll, top1.tolist())
        for row, loss in enumerate(nll):
            finite(loss, f"the loss at token {first + row}")
        if self._kept:
            said.kept = to_half(shifted), hidden
        if self._reference:
            kept, theirs = self._reference.rows(first, len(logits))
            there = slice(len(kept))
            said.kld = _divergence(kept, shifted[there], log_total[there]).tolist()
            if self.cosine is not None:
                said.cosine = _cosine(hidden[there], theirs).tolist()
        return said

    def _take(self, said):
        self.nll += said.nll
        self.top1 += said.top1
        if self._kept:
            self._kept.write(*said.kept)
        if self._reference:
            self.kld += said.kld
            if self.cosine is not None:
                self.cosine += said.cosine

    def finish(self):
        """Complete the kept files."""
        self._pool.shutdown()
        if self._kept:
            self._kept.finish(self._ids)


@dataclass
class _Said:
    """What a block of rows says; see Distributions."""

    nll: list
    top1: list
    kld: list = ()
    cosine: list = ()
    kept: tuple = ()


def _divergence(kept, shifted, log_total):
    """KL divergence in nats of each row: softmax of `kept` against softmax of `shifted`."""
    weights = numpy.exp(kept)
    total = weights.sum(axis=1, dtype=numpy.float64)
    mean = numpy.einsum("ij,ij->i", weights, kept - shifted) / total
    return numpy.maximum(mean - numpy.log(total) + log_total, 0.0)


def _cosine(ours, theirs):
    lengths = numpy.linalg.norm(ours, axis=1) * numpy.linalg.norm(theirs, axis=1)
    return (ours * theirs).sum(axis=1, dtype=numpy.float64) / numpy.maximum(lengths, 1e-30)


def to_half(shifted):
    """float32 values that are all <= 0 as float16, rounded; those too low become the lowest.

    numpy converts one value at a time where this takes a few instructions for many of them.
    """
    scaled = numpy.maximum(shifted, _LOWEST)
    scaled /= _REBIAS
    bits = scaled.view(numpy.uint32)
    bits += 1 << 12  # half of what is cut off next
    bits >>= 13
    half = bits.astype(numpy.uint16)
    half |= 0x8000
    return half.view(numpy.float16)


def from_half(kept):
    """float16 values that are all <= 0 as float32."""
    bits = kept.view(numpy.uint16).astype(numpy.uint32)
    bits &= 0x7FFF
    bits <<= 13
    values = bits.view(numpy.float32)
    values *= -_REBIAS
    return values


class _Kept:
    """Writes the files of a reference, up to KEPT_BYTES of logits."""

    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._logits = (folder / LOGITS).open("wb")
        self._hidden = (folder / HIDDEN).open("wb")
        self._tokens = self._vocabulary = self._width = 0

    def write(self, half, hidden):
        self._vocabulary = half.shape[1]
        room = KEPT_BYTES // (2 * self._vocabulary) - self._tokens
        rows = slice(min(len(half), room))
        self._logits.write(half[rows].data)
        if hidden is not None:
            self._width = hidden.shape[1]
            self._hidden.write(hidden[rows].astype(numpy.float16).data)
        self._tokens += rows.stop

    def finish(self, ids_sha256):
        self._logits.close()
        self._hidden.close()
        if not self._width:
            (self._folder / HIDDEN).unlink()
        shape = {"tokens": self._tokens, "vocabulary": self._vocabulary, "width": self._width}
        document = json.dumps({**shape, "ids_sha256": ids_sha256})
        (self._folder / SHAPE).write_text(document, encoding="utf-8")


class _Reference:
    """Reads the files of a reference; raises WorkerError where it is of other ids."""

    def __init__(self, folder, ids_sha256):
        shape = json.loads((folder / SHAPE).read_text(encoding="utf-8"))
        if shape["ids_sha256"] != ids_sha256:
            raise WorkerError(
                "the model tokenizes the evaluation text differently from the 16-bit model",
                "Its tokenizer was damaged or exchanged; build it again from the source.",
            )
        self.width, self._vocabulary = shape["width"], shape["vocabulary"]
        self._logits = _mapped(folder / LOGITS, shape["tokens"], self._vocabulary)
        self._hidden = _mapped(folder / HIDDEN, shape["tokens"], self.width) if self.width else None

    def check(self, vocabulary):
        if vocabulary != self._vocabulary:
            raise WorkerError(
                f"the model has {vocabulary} logits a token, the 16-bit model {self._vocabulary}",
                "It is another model, or its vocabulary was padded; nothing can be compared.",
            )

    def rows(self, first, count):
        rows = slice(first, first + count)
        hidden = None if self._hidden is None else self._hidden[rows].astype(numpy.float32)
        return from_half(self._logits[rows]), hidden


def _mapped(path, rows, columns):
    return numpy.memmap(path, numpy.float16, "r", shape=(rows, columns))
