"""GGUF files: read through a memory map, written tensor by tensor; both in bounded memory.

The metadata is kept as raw bytes too, so that a copy carries it over unchanged. Counts and lengths
are checked against the file's size before anything is allocated. (The gguf package's own reader
takes seconds for a vocabulary of 50,000, and minutes for hostile counts.)
Layout: magic, version, counts, metadata, tensor list, padding, tensor data; little endian.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from _protocol import WorkerError
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

Q = GGMLQuantizationType
FLOATS = (Q.F32, Q.F16, Q.BF16)
INTEGERS = (Q.I8, Q.I16, Q.I32, Q.I64)
CHUNK_ELEMENTS = 1 << 22
STRING, ARRAY = 8, 9
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
UINT32 = 4


@dataclass(frozen=True)
class Tensor:
    """One tensor; `shape` is in GGUF's order, the row width first.

    `data` maps the file; it begins there at byte `offset`.
    """

    name: str
    shape: tuple
    kind: GGMLQuantizationType
    data: memoryview
    offset: int

    @property
    def width(self):
        return self.shape[0]

    @property
    def elements(self):
        return prod(self.shape)

    @property
    def height(self):
        return self.elements // self.width

    def chunks(self):
        """Yield (first row, float32 rows), at most about 4M elements each; all are finite."""
        row_bytes = len(self.data) // self.height
        step = max(1, CHUNK_ELEMENTS // self.width)
        for first in range(0, self.height, step):
            last = min(first + step, self.height)
            raw = np.frombuffer(self.data[first * row_bytes : last * row_bytes], np.uint8)
            piece = dequantize(raw.reshape(last - first, row_bytes), self.kind)
            if not np.isfinite(piece).all():
                raise WorkerError(
                    f"tensor {self.name} holds NaN or Inf",
                    "The weights are damaged, or their values do not fit 16 bits.",
                )
            yield first, piece


class GGUFFile:
    """A GGUF file: `metadata` (key -> value), `raw` (key -> encoded entry), `tensors` by name."""

    def __init__(self, path):
        self.path = str(path)
        try:
            with Path(path).open("rb") as stream:
                self._bytes = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise WorkerError(f"{path} cannot be read: {error}") from error
        self._at = 0
        try:
            self._read()
        except (struct.error, UnicodeDecodeError, ValueError, OverflowError) as error:
            raise self._bad(f"it is damaged ({error})") from error

    def _bad(self, why):
        return WorkerError(f"{self.path} is no usable GGUF file: {why}", "Fetch it again.")

    def _read(self):
        if self._take(4) != b"GGUF":
            raise self._bad("it does not start with GGUF")
        if self._number("<I") not in (2, 3):
            raise self._bad("its version is unknown")
        n_tensors, n_entries = self._number("<Q"), self._number("<Q")
        for count, smallest, what in ((n_tensors, 24, "tensors"), (n_entries, 13, "entries")):
            if count > len(self._bytes) // smallest:
                raise self._bad(f"it claims {count} {what} in {len(self._bytes)} bytes")
        self.metadata, self.raw = {}, {}
        for _ in range(n_entries):
            start = self._at
            key = self._string()
            self.metadata[key] = self._value(self._number("<I"))
            self.raw[key] = bytes(self._bytes[start : self._at])
        if self.metadata.get("split.count", 1) > 1:
            raise WorkerError(f"{self.path} is one part of several", "Merge the parts first.")
        listed = [self._tensor_entry() for _ in range(n_tensors)]
        self.alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(self.alignment, int) or not 8 <= self.alignment <= 65536:
            raise self._bad(f"its alignment is {self.alignment}")
        base = self._at + -self._at % self.alignment
        self.tensors = {name: self._map(base, name, *rest) for name, *rest in listed}

    def _take(self, count):
        if count > len(self._bytes) - self._at:
            raise self._bad(f"it ends at byte {len(self._bytes)}, in the middle of a value")
        self._at += count
        return self._bytes[self._at - count : self._at]

    def _number(self, layout):
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _string(self):
        return str(self._take(self._number("<Q")), "utf-8", "surrogateescape")

    def _strings(self, count):
        """An array of strings, in one tight loop: a vocabulary has a hundred thousand of them."""
        data, at, length_at = self._bytes, self._at, struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            start = at + 8
            at = start + length_at(data, at)[0]
            if at > len(data):
                raise self._bad(f"it ends at byte {len(data)}, in the middle of a value")
            found.append(str(data[start:at], "utf-8", "surrogateescape"))
        self._at = at
        return found

    def _value(self, kind):
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            raise self._bad(f"it has a value of unknown kind {kind}")
        item, count = self._number("<I"), self._number("<Q")
        if item == STRING and count <= len(self._bytes) // 8:
            return self._strings(count)
        if item not in SCALARS:
            raise self._bad(f"it has an array of kind {item} with {count} items")
        size = struct.calcsize(SCALARS[item])
        return np.frombuffer(self._take(count * size), SCALARS[item]).tolist()

    def _tensor_entry(self):
        name, n_dimensions = self._string(), self._number("<I")
        if not 1 <= n_dimensions <= 4:
            raise self._bad(f"tensor {name} has {n_dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(n_dimensions))
        return name, shape, self._number("<I"), self._number("<Q")

    def _map(self, base, name, shape, kind_number, offset):
        kind = Q(kind_number)
        nbytes = stored_bytes(shape, kind)
        if min(shape) < 1 or nbytes is None:
            raise self._bad(f"tensor {name} has shape {list(shape)}, type {kind.name.lower()}")
        start, end = base + offset, base + offset + nbytes
        if end > len(self._bytes):
            raise self._bad(f"tensor {name} ends at byte {end}, the file at {len(self._bytes)}")
        return Tensor(name, shape, kind, self._bytes[start:end], start)


def stored_bytes(shape, kind):
    """Bytes a tensor takes, None where its rows do not divide into blocks."""
    block, size = GGML_QUANT_SIZES[kind]
    return None if shape[0] % block else prod(shape) // block * size


def entry(key, value):
    """An encoded metadata entry that holds an unsigned 32-bit number."""
    name = key.encode()
    return struct.pack("<Q", len(name)) + name + struct.pack("<II", UINT32, value)


def write_gguf(path, entries, listed, alignment, produce):
    """Write a GGUF file.

    `entries` are encoded metadata entries, `listed` is [(name, shape, type)], and `produce(name)`
    gives that tensor's bytes (any C-contiguous buffer); it is called in order, one at a time.
    """
    with Path(path).open("wb") as out:
        out.write(b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(entries)))
        out.writelines(entries)
        offset = 0
        for name, shape, kind in listed:
            encoded = name.encode("utf-8", "surrogateescape")
            out.write(struct.pack("<Q", len(encoded)) + encoded)
            out.write(struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset))
            offset += stored_bytes(shape, kind)
            offset += -offset % alignment
        out.write(bytes(-out.tell() % alignment))
        for name, _, _ in listed:
            out.write(produce(name))
            out.write(bytes(-out.tell() % alignment))
