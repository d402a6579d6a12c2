"""llama.cpp as a library, for logits at every position: its C functions in the xllamacpp wheel.

The wheel links llama.cpp into its extension module and leaves the C functions visible, so that no
compiler is needed. ctypes must know how the structures are laid out in exactly that release: the
lock pins the release, and the library's own defaults are read back through our layout before
anything else is done with it.
"""

import ctypes
import os
import sys
from ctypes import (
    POINTER,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_size_t,
    c_uint32,
    c_void_p,
)
from pathlib import Path

import numpy
import xllamacpp.xllamacpp
from _protocol import WorkerError

STEP_TOKENS = 512
"""Tokens computed at once; each has a logit for every word of the vocabulary."""


class _ModelParams(ctypes.Structure):
    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    )


class _ContextParams(ctypes.Structure):
    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("unused", c_void_p),  # in this release one pointer more than in llama-cpp-python 0.3.36
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


_POINTER_RESULTS = (
    "llama_model_load_from_file", "llama_model_get_vocab", "llama_init_from_model",
    "llama_get_memory",
)  # fmt: skip
_WARNING, _ERROR = 3, 4  # ggml's log levels
_HALF = 1  # ggml's number of the type f16
_NO_POOLING = 0
_MODEL_DEFAULTS = {
    "n_gpu_layers": (-1,),
    "main_gpu": (0,),
    "vocab_only": (False,),
    "check_tensors": (False,),
    "use_extra_bufts": (True,),
    "no_alloc": (False,),
}
_CONTEXT_DEFAULTS = {
    "n_ctx": (512,),
    "n_batch": (2048,),
    "n_ubatch": (512,),
    "n_seq_max": (1,),
    "rope_freq_base": (0.0,),
    "yarn_ext_factor": (-1.0,),
    "type_k": (_HALF,),
    "type_v": (_HALF,),
    "embeddings": (False,),
    "offload_kqv": (True,),
    "no_perf": (True,),
    "op_offload": (True,),
    "swa_full": (True,),
    "kv_unified": (False,),
    "n_samplers": (0,),
}
"""What the library's defaults are; a layout that does not fit reads something else."""


@ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
def _log(level, text, _):
    """Only warnings and errors: llama.cpp tells a thousand lines of each model it loads."""
    if level in (_WARNING, _ERROR):
        sys.stderr.write(text.decode("utf-8", "replace"))


def _load():
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    library.llama_log_set(_log, None)
    library.llama_model_default_params.restype = _ModelParams
    library.llama_context_default_params.restype = _ContextParams
    library.llama_batch_init.restype = _Batch
    for name in _POINTER_RESULTS:
        getattr(library, name).restype = c_void_p
    for name in ("llama_get_logits", "llama_get_embeddings"):
        getattr(library, name).restype = POINTER(c_float)
    library.llama_model_load_from_file.argtypes = (c_char_p, _ModelParams)
    library.llama_init_from_model.argtypes = (c_void_p, _ContextParams)
    library.llama_decode.argtypes = (c_void_p, _Batch)
    library.llama_memory_clear.argtypes = (c_void_p, c_bool)
    library.llama_tokenize.argtypes = (
        c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool,
    )  # fmt: skip
    library.llama_model_meta_val_str.argtypes = (c_void_p, c_char_p, c_char_p, c_size_t)
    library.llama_vocab_is_eog.argtypes = (c_void_p, c_int32)
    library.llama_vocab_is_eog.restype = c_bool
    library.llama_token_to_piece.argtypes = (c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool)
    for name in (
        "llama_model_get_vocab", "llama_model_n_embd", "llama_get_memory", "llama_get_logits",
        "llama_get_embeddings", "llama_vocab_bos", "llama_vocab_n_tokens",
    ):  # fmt: skip
        getattr(library, name).argtypes = (c_void_p,)
    _check_layout(library.llama_model_default_params(), _MODEL_DEFAULTS)
    _check_layout(library.llama_context_default_params(), _CONTEXT_DEFAULTS)
    library.llama_backend_init()
    return library


def _check_layout(params, known):
    wrong = [name for name, values in known.items() if getattr(params, name) not in values]
    if wrong:
        raise WorkerError(
            f"this xllamacpp has another layout of llama.cpp's parameters ({', '.join(wrong)})",
            "Use the release that the llama-cpp toolchain locks.",
        )


class LlamaModel:
    """A GGUF model for windows of at most `n_ctx` tokens, computed on `threads` processor threads.

    `begin` is the id of BOS, None where the model has none; `vocabulary` counts the logits of a
    position, `width` the values of a hidden state.
    """

    def __init__(self, gguf, n_ctx, threads=None):
        if not Path(gguf).is_file():
            raise WorkerError(f"there is no file {gguf}")
        self._library = _load()
        params = self._library.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = self._library.llama_model_load_from_file(os.fsencode(gguf), params)
        if not self._model:
            raise WorkerError(
                f"llama.cpp cannot load {Path(gguf).name}",
                "The log says why: a damaged file, an unknown architecture or too little memory.",
            )
        self._vocab = self._library.llama_model_get_vocab(self._model)
        self.vocabulary = self._library.llama_vocab_n_tokens(self._vocab)
        self.width = self._library.llama_model_n_embd(self._model)
        begin = self._library.llama_vocab_bos(self._vocab)
        self.begin = None if begin < 0 else begin
        self._context = self._new_context(n_ctx, threads)
        self._batch = self._library.llama_batch_init(STEP_TOKENS, 0, 1)

    def _new_context(self, n_ctx, threads):
        params = self._library.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = STEP_TOKENS
        params.n_threads = params.n_threads_batch = threads or len(os.sched_getaffinity(0))
        params.embeddings = True
        params.pooling_type = _NO_POOLING
        context = self._library.llama_init_from_model(self._model, params)
        if not context:
            raise WorkerError(
                f"llama.cpp cannot hold a window of {n_ctx} tokens",
                "The log says why, most likely too little memory: choose a smaller window.",
            )
        return context

    def tokenize(self, text, special=False):
        """Token ids without BOS; with `special`, special tokens in the text are recognized."""
        raw = text.encode("utf-8")
        room = len(raw) + 8
        ids = (c_int32 * room)()
        count = self._library.llama_tokenize(self._vocab, raw, len(raw), ids, room, False, special)
        if count < 0:
            raise WorkerError("llama.cpp cannot tokenize the text")
        return list(ids[:count])

    def metadata(self, key):
        """A value of the file's metadata as text, None where the key is absent."""
        name, library = key.encode(), self._library
        size = library.llama_model_meta_val_str(self._model, name, None, 0)
        if size < 0:
            return None
        room = ctypes.create_string_buffer(size + 1)
        library.llama_model_meta_val_str(self._model, name, room, size + 1)
        return room.value.decode("utf-8", "replace")

    def logits(self, ids):
        """(logits, hidden) of the next tokens of `ids`, up to STEP_TOKENS rows at a time.

        Arrays of float32 [rows, vocabulary] and [rows, width], valid until the next step. `ids` is
        one window: what was computed before it is forgotten.
        """
        library = self._library
        library.llama_memory_clear(library.llama_get_memory(self._context), True)
        for start in range(0, len(ids), STEP_TOKENS):
            step = ids[start : start + STEP_TOKENS]
            self._decode(step, start)
            yield (
                self._array(library.llama_get_logits, len(step), self.vocabulary),
                self._array(library.llama_get_embeddings, len(step), self.width),
            )

    def greedy(self, ids, count):
        """The next `count` ids behind `ids`, always the likeliest; fewer where the model ends."""
        for rows, _ in self.logits(ids):
            last = rows[-1]
        chosen = []
        while len(chosen) < count:
            token = int(last.argmax())
            if self._library.llama_vocab_is_eog(self._vocab, token):
                break
            self._decode([token], len(ids) + len(chosen))
            last = self._array(self._library.llama_get_logits, 1, self.vocabulary)[0]
            chosen.append(token)
        return chosen

    def text(self, ids):
        """The text of token ids; bytes that are no UTF-8 are replaced."""
        pieces = b""
        room = ctypes.create_string_buffer(512)
        for token in ids:
            size = self._library.llama_token_to_piece(self._vocab, token, room, 512, 0, False)
            pieces += room.raw[: max(size, 0)]
        return pieces.decode("utf-8", "replace")

    def _decode(self, step, start):
        self._fill(step, start)
        status = self._library.llama_decode(self._context, self._batch)
        if status:
            raise WorkerError(f"llama.cpp stopped at token {start} of a window ({status})")

    def _fill(self, step, start):
        batch = self._batch
        batch.n_tokens = len(step)
        for row, token in enumerate(step):
            batch.token[row] = token
            batch.pos[row] = start + row
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = 0
            batch.logits[row] = 1

    def _array(self, getter, rows, columns):
        return numpy.ctypeslib.as_array(getter(self._context), shape=(rows, columns))
