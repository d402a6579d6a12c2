"""What a GGUF file holds: its architecture, tensor types, true size a weight, KV-cache cost.

This is also the check that stands before any native parser: every count, length and offset is
compared with the size of the file before it is believed, and arrays are stepped over.
Format: the GGUF specification, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from deployer.artifacts import Record
from deployer.errors import SourceError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 1 << 20
MAX_DIMENSIONS = 4
MAX_STRING = 16 << 20
MAX_TEXTS = 64 << 20
"""Bytes of all names and texts together, those in arrays not counted: they are not kept."""
_SIXTEEN_BIT_OR_MORE = frozenset({"F64", "F32", "F16", "BF16"})
_KV_BYTES = 2
"""llama.cpp keeps keys and values as f16 unless told otherwise."""
_NUMBERS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_CHAT_TEMPLATE = "tokenizer.chat_template"
_Result = TypeVar("_Result")
_NEWER_TYPES = {42: ("Q2_0", 64, 18)}
"""Types of the pinned llama.cpp release that the gguf package does not know yet (ggml-common.h)."""


class GgufInfo(Record):
    """Facts of one GGUF file.

    `types` counts tensors by type; `bits_per_weight` is 8 x all tensor bytes / all weights;
    `kv_bytes_per_token` is what one token takes in the KV cache of one request (bytes, f16).
    """

    architecture: str
    name: str
    tensors: int
    types: dict[str, int]
    parameters: int
    tensor_bytes: int
    bits_per_weight: float
    context_length: int | None
    kv_bytes_per_token: int | None
    has_chat_template: bool

    @property
    def quantized(self) -> bool:
        """Whether any tensor has fewer than 16 bits a weight."""
        return not set(self.types) <= _SIXTEEN_BIT_OR_MORE


_LENGTH = struct.Struct("<Q")


class _Tensor(NamedTuple):
    """One entry of the tensor table; `offset` is relative to the data part."""

    offset: int
    size: int
    name: str
    kind: str
    weights: int


class _Damaged(Exception):
    """The file contradicts itself; the message says how."""


class _Reader:
    """A cursor over the mapped file that never leaves it."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.size = len(data)
        self.at = 0
        self.texts = 0

    def skip(self, count: int) -> int:
        """Step over `count` bytes; gives where they began."""
        begin = self.at
        if count < 0 or begin + count > self.size:
            raise _Damaged(f"{count} bytes at {begin} lie beyond its end ({self.size} bytes)")
        self.at += count
        return begin

    def number(self, form: str) -> Any:
        begin = self.skip(struct.calcsize(form))
        return struct.unpack_from(form, self.data, begin)[0]

    def count(self, what: str) -> int:
        value = int(self.number("<Q"))
        if value > MAX_ENTRIES:
            raise _Damaged(f"it claims {value} {what}")
        return value

    def string(self) -> str:
        length = int(self.number("<Q"))
        if length > MAX_STRING:
            raise _Damaged(f"a text of {length} bytes")
        self.texts += length
        if self.texts > MAX_TEXTS:
            raise _Damaged(f"over {MAX_TEXTS} bytes of texts")
        begin = self.skip(length)
        return self.data[begin : begin + length].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A metadata value; an array gives None and is stepped over."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            self._skip_array()
            return None
        raise _Damaged(f"a value of the unknown kind {kind}")

    def _skip_array(self) -> None:
        kind = int(self.number("<I"))
        length = int(self.number("<Q"))
        if kind in _NUMBERS:
            self.skip(struct.calcsize(_NUMBERS[kind]) * length)
        elif kind == _STRING:
            if length * 8 > self.size:
                raise _Damaged(f"an array of {length} texts")
            self._skip_strings(length)
        else:
            raise _Damaged(f"an array of the unknown kind {kind}")

    def _skip_strings(self, count: int) -> None:
        """Step over texts: a vocabulary has a hundred thousand, so without a call for each."""
        data, last, at = self.data, self.size - _LENGTH.size, self.at
        for _ in range(count):
            if at > last:
                break
            at += _LENGTH.size + _LENGTH.unpack_from(data, at)[0]
        else:
            if at <= self.size:
                self.at = at
                return
        raise _Damaged(f"the texts of an array lie beyond its end ({self.size} bytes)")


def inspect_gguf(path: Path) -> GgufInfo:
    """Read and check a GGUF file's header; raises SourceError where it is damaged or none.

    Takes memory and time in proportion to the header, whatever its numbers claim.
    """
    return _read(path, _describe)


def chat_templates(path: Path) -> dict[str, str]:
    """Every chat template of a GGUF file's metadata by its key; raises as `inspect_gguf` does."""
    return _read(
        path,
        lambda reader: {
            key: value
            for key, value in _header(reader)[1].items()
            if key.startswith(_CHAT_TEMPLATE) and isinstance(value, str)
        },
    )


def _read(path: Path, use: Callable[[_Reader], _Result]) -> _Result:
    try:
        with path.open("rb") as stream:
            if stream.read(4) != MAGIC:
                raise _Damaged("it does not begin with the letters GGUF")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return use(_Reader(data))
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read: {error.strerror}", "Name a GGUF file that you may read."
        ) from error
    except _Damaged as damage:
        raise SourceError(
            f"{path} is no usable GGUF file: {damage}",
            "It may be cut off, or a pointer file of git-lfs: fetch it again, compare its hash.",
        ) from damage


def _header(reader: _Reader) -> tuple[int, dict[str, Any]]:
    """(number of tensors, metadata); the reader then stands before the tensor table."""
    reader.skip(4)
    version = int(reader.number("<I"))
    if version not in VERSIONS:
        raise _Damaged(f"version {version} (known: 2, 3)")
    tensors, entries = reader.count("tensors"), reader.count("metadata entries")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = reader.string()
        metadata[key] = reader.value(int(reader.number("<I")))
    return tensors, metadata


def _describe(reader: _Reader) -> GgufInfo:
    tensors, metadata = _header(reader)
    table = [_read_tensor(reader) for _ in range(tensors)]
    _check_extent(reader, metadata, table)
    architecture = str(metadata.get("general.architecture") or "unknown")
    tensor_bytes = sum(tensor.size for tensor in table)
    parameters = sum(tensor.weights for tensor in table)
    context = metadata.get(f"{architecture}.context_length")
    return GgufInfo(
        architecture=architecture,
        name=str(metadata.get("general.name") or ""),
        tensors=tensors,
        types=dict(Counter(tensor.kind for tensor in table)),
        parameters=parameters,
        tensor_bytes=tensor_bytes,
        bits_per_weight=round(8 * tensor_bytes / max(parameters, 1), 4),
        context_length=context if isinstance(context, int) else None,
        kv_bytes_per_token=_kv_bytes_per_token(metadata.get, architecture),
        has_chat_template=_CHAT_TEMPLATE in metadata,
    )


def _read_tensor(reader: _Reader) -> _Tensor:
    name = reader.string()
    dimensions = int(reader.number("<I"))
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise _Damaged(f"{name} has {dimensions} dimensions")
    shape = [int(reader.number("<Q")) for _ in range(dimensions)]
    code = int(reader.number("<I"))
    offset = int(reader.number("<Q"))
    kind, block, block_bytes = _type_of(code, name)
    if min(shape) < 1 or shape[0] % block:
        raise _Damaged(f"{name} has the shape {shape}, impossible for {kind}")
    count = math.prod(shape)
    return _Tensor(offset, count // block * block_bytes, name, kind, count)


def _type_of(code: int, tensor: str) -> tuple[str, int, int]:
    """(name, weights a block, bytes a block) of a tensor type."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # heavy: numpy

    if code in _NEWER_TYPES:
        return _NEWER_TYPES[code]
    try:
        kind = GGMLQuantizationType(code)
    except ValueError:
        raise _Damaged(f"{tensor} has the unknown type {code}") from None
    return kind.name, *GGML_QUANT_SIZES[kind]


def _check_extent(reader: _Reader, metadata: dict[str, Any], table: list[_Tensor]) -> None:
    """Raise _Damaged unless every tensor lies within the file, in bytes of its own."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise _Damaged(f"an alignment of {alignment}")
    start = -(-reader.at // alignment) * alignment
    names: set[str] = set()
    end = 0
    for tensor in sorted(table):
        if tensor.name in names:
            raise _Damaged(f"the tensor {tensor.name} stands in it twice")
        if tensor.offset % alignment:
            raise _Damaged(f"{tensor.name} begins at {tensor.offset}, off the alignment")
        if tensor.offset < end:
            raise _Damaged(f"{tensor.name} overlaps the tensor before it")
        names.add(tensor.name)
        end = tensor.offset + tensor.size
    if start + end > reader.size:
        raise _Damaged(f"its tensors need {start + end} bytes, the file has {reader.size}")


def _kv_bytes_per_token(get: Callable[[str], Any], architecture: str) -> int | None:
    """Layers x KV heads x (key + value width) x 2 bytes; None for other attention schemes."""
    layers = get(f"{architecture}.block_count")
    heads = get(f"{architecture}.attention.head_count")
    kv_heads = get(f"{architecture}.attention.head_count_kv") or heads
    width = get(f"{architecture}.embedding_length")
    if not all(isinstance(value, int) and value > 0 for value in (layers, heads, kv_heads, width)):
        return None
    key = get(f"{architecture}.attention.key_length") or width // heads
    value = get(f"{architecture}.attention.value_length") or width // heads
    if not (isinstance(key, int) and isinstance(value, int)):
        return None
    return int(layers * kv_heads * (key + value) * _KV_BYTES)
