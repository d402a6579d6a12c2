"""Tiny GGUF files and checkpoints, written by hand so that any number in them can lie."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HUGE = 2**63
F32, F16, Q4_0, Q8_0, BF16 = 0, 1, 2, 8, 30
U32, INT32, FLOAT32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
_BYTES = {F32: (1, 4), F16: (1, 2), BF16: (1, 2), Q4_0: (32, 18), Q8_0: (32, 34)}
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "llama.context_length": 128,
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a GGUF file; `offset` None means right behind the one before."""

    name: str
    shape: Sequence[int] = (32, 2)
    kind: int = F16
    offset: int | None = None

    @property
    def size(self) -> int:
        block, size = _BYTES.get(self.kind, (1, 4))
        return math.prod(self.shape) // block * size


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A GGUF string, its length told wrongly where `length` is given."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def entry(key: str, value: Any) -> bytes:
    """A metadata entry; bytes are taken as they are, kind and all."""
    if isinstance(value, bytes):
        return text(key) + value
    if isinstance(value, bool):
        return text(key) + struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<II", U32, value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", FLOAT32, value)
    return text(key) + struct.pack("<I", STRING) + text(value)


def array(kind: int, items: bytes, length: int) -> bytes:
    """The bytes of an array value, to be used as an entry's value."""
    return struct.pack("<IIQ", ARRAY, kind, length) + items


def gguf(
    metadata: Mapping[str, Any] | None = None,
    tensors: Sequence[Tensor] = (Tensor("a"), Tensor("b")),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_entries: int | None = None,
    alignment: int = 32,
    dimensions: int | None = None,
    data: bytes | None = None,
) -> bytes:
    """A GGUF file; the keyword arguments make it lie about itself."""
    facts = METADATA if metadata is None else metadata
    head = magic + struct.pack("<I", version)
    head += struct.pack("<Q", len(tensors) if n_tensors is None else n_tensors)
    head += struct.pack("<Q", len(facts) if n_entries is None else n_entries)
    head += b"".join(entry(key, value) for key, value in facts.items())
    at = 0
    for tensor in tensors:
        offset = at if tensor.offset is None else tensor.offset
        head += text(tensor.name)
        head += struct.pack("<I", len(tensor.shape) if dimensions is None else dimensions)
        head += b"".join(struct.pack("<Q", width) for width in tensor.shape)
        head += struct.pack("<IQ", tensor.kind, offset)
        at += -(-tensor.size // alignment) * alignment
    padding = b"\0" * (-len(head) % alignment)
    return head + padding + (b"\0" * at if data is None else data)


CONFIG: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
Header = Mapping[str, Any]


def tensor_entry(
    shape: Sequence[int] = (2, 4), begin: int = 0, end: int = 16, dtype: str = "BF16"
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def safetensors(
    header: Header | bytes | None = None, data: bytes | None = None, length: int | None = None
) -> bytes:
    """A safetensors file; `length` is what it says of its header's length."""
    tensors = {"a": tensor_entry(), "b": tensor_entry((3,), 16, 22, "F16")}
    chosen = tensors if header is None else header
    raw = chosen if isinstance(chosen, bytes) else json.dumps(chosen).encode()
    told = len(raw) if length is None else length
    return struct.pack("<Q", told) + raw + (b"\0" * 22 if data is None else data)


def checkpoint(folder: Path, shards: Sequence[str] = ("model.safetensors",)) -> Path:
    """A whole, tiny checkpoint: config, tokenizer and shards, with an index where they are many."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    for shard in shards:
        (folder / shard).write_bytes(safetensors())
    if len(shards) > 1:
        write_index(folder, {f"{shard}.a": shard for shard in shards})
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    document = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document), encoding="utf-8")
