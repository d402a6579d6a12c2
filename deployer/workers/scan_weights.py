"""Look for NaN and Inf in all weights of a GGUF file, or of a folder's safetensors files.

Request: {path}. Response: {tensors, tensor: name | null, file: name | null}; `tensor` is the first
one that holds a value that is no finite number. Memory stays bounded.
"""

import json
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from _gguf_file import INTEGERS, GGUFFile
from _protocol import WorkerError, progress, run

CHUNK_BYTES = 1 << 25
HEADER_LIMIT = 100_000_000
# A value is NaN or Inf when all bits of its exponent are set.
EXPONENTS = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}


def main(request):
    path = Path(request["path"])
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    count = 0
    for done, file in enumerate(files, 1):
        scan = _scan_gguf if file.suffix == ".gguf" else _scan_safetensors
        for name, finite in scan(file):
            count += 1
            if not finite:
                return {"tensors": count, "tensor": name, "file": file.name}
        progress(done, len(files), "looking for NaN and Inf")
    if not count:
        raise WorkerError(f"there are no weights in {path}")
    return {"tensors": count, "tensor": None, "file": None}


def _scan_gguf(path):
    for name, tensor in GGUFFile(path).tensors.items():
        kind = tensor.kind.name
        if kind in EXPONENTS:
            yield name, all(_all_finite(part, kind) for part in _parts(tensor.data))
        else:
            yield name, tensor.kind in INTEGERS or _dequantizes(tensor)


def _dequantizes(tensor):
    """Whether every block of a quantized tensor gives finite weights."""
    try:
        for _ in tensor.chunks():
            pass
    except WorkerError:
        return False
    return True


def _parts(data):
    for first in range(0, len(data), CHUNK_BYTES):
        yield data[first : first + CHUNK_BYTES]


def _all_finite(raw, kind):
    """Whether no value of these bytes has all bits of its exponent set."""
    dtype, exponent = EXPONENTS[kind]
    return not ((np.frombuffer(raw, dtype) & dtype(exponent)) == exponent).any()


def _scan_safetensors(path):
    with path.open("rb") as stream:
        size = path.stat().st_size
        length = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))[0]
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise WorkerError(f"{path.name} has no usable header: it claims {length} bytes")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise WorkerError(f"{path.name} has no usable header: {error}") from error
        header.pop("__metadata__", None)
        for name, described in header.items():
            yield name, _finite(stream, 8 + length, described, size, path)


def _finite(stream, base, described, size, path):
    start, end = described["data_offsets"]
    if not 0 <= start <= end <= size - base:
        raise WorkerError(f"{path.name} has a tensor that ends at byte {base + end} of {size}")
    if described["dtype"] not in EXPONENTS:
        return True
    stream.seek(base + start)
    return all(
        _all_finite(stream.read(min(CHUNK_BYTES, end - first)), described["dtype"])
        for first in range(start, end, CHUNK_BYTES)
    )


if __name__ == "__main__":
    run(main)
