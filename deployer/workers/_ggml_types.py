"""llama.cpp's own rounding: weights to one of its types and back, by C functions of xllamacpp."""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p

import numpy as np
import xllamacpp.xllamacpp
from _protocol import WorkerError
from gguf import GGML_QUANT_SIZES

_PIECE_ROWS = 512
"""Rows rounded at once by one thread."""


class _Traits(ctypes.Structure):
    _fields_ = (
        ("type_name", c_char_p),
        ("blck_size", c_int64),
        ("blck_size_interleave", c_int64),
        ("type_size", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, c_void_p, POINTER(c_float), c_int64)),
        ("from_float_ref", c_void_p),
    )


class GgmlTypes:
    """Rounds rows of weights to `kind`, a GGMLQuantizationType, on `threads` processor threads."""

    def __init__(self, threads=None):
        library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
        library.ggml_get_type_traits.restype = POINTER(_Traits)
        library.ggml_get_type_traits.argtypes = (c_int,)
        library.ggml_quantize_chunk.restype = c_size_t
        library.ggml_quantize_chunk.argtypes = (
            c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p,
        )  # fmt: skip
        library.ggml_quantize_init.argtypes = (c_int,)
        self._library = library
        self._pool = ThreadPoolExecutor(threads or len(os.sched_getaffinity(0)))

    def rounded(self, values, kind, weights=None):
        """`values` (float32 [rows, width]) as they come back from `kind`, as float32.

        `weights` (float32 [width]) says how much the error in each column counts.
        """
        traits = self._traits(kind)
        self._library.ggml_quantize_init(int(kind))
        values = np.ascontiguousarray(values, np.float32)
        result = np.empty_like(values)

        def piece(first):
            rows = slice(first, first + _PIECE_ROWS)
            result[rows] = self._piece(values[rows], kind, traits, weights)

        list(self._pool.map(piece, range(0, len(values), _PIECE_ROWS)))
        return result

    def _piece(self, values, kind, traits, weights):
        rows, width = values.shape
        stored = np.empty(values.size // traits.blck_size * traits.type_size, np.uint8)
        result = np.empty_like(values)
        column_weights = None if weights is None else weights.ctypes.data
        self._library.ggml_quantize_chunk(
            int(kind), values.ctypes.data, stored.ctypes.data, 0, rows, width, column_weights
        )
        target = result.ctypes.data_as(POINTER(c_float))
        traits.to_float(stored.ctypes.data, target, values.size)
        return result

    def _traits(self, kind):
        """The type's facts; WorkerError where our layout of them is not the library's."""
        traits = self._library.ggml_get_type_traits(int(kind)).contents
        if (traits.blck_size, traits.type_size) != GGML_QUANT_SIZES[kind]:
            raise WorkerError(
                f"this xllamacpp stores {kind.name.lower()} in another way",
                "Use the release that the llama-cpp toolchain locks.",
            )
        return traits
