"""Model files: GGUF and safetensors checkpoints."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import model_files
from fuzzing import Target, Wrong
from mutating import NUMBERS, json_bytes, mutate_bytes, mutate_json, pack

from deployer.checkpoint import check_checkpoint
from deployer.errors import SourceError
from deployer.gguf_file import chat_templates, inspect_gguf
from targets.folders import LINK, lay_out, misplace


def _gguf(rng: random.Random) -> bytes:
    metadata: dict[str, Any] = {**model_files.METADATA, "tokenizer.chat_template": "{{ messages }}"}
    if rng.random() < 0.5:
        return mutate_bytes(rng, model_files.gguf(metadata), [model_files.gguf({})])
    for _ in range(rng.randrange(4)):
        key = rng.choice([*metadata, "general.alignment", "x" * rng.randrange(200)])
        metadata[key] = rng.choice(
            (0, 1, 2**31, 2**32 - 1, -1 & 0xFFFFFFFF, True, 1e38, "", "x" * 3000,
             model_files.array(rng.randrange(14), rng.randbytes(rng.randrange(40)),
                               rng.choice(NUMBERS) & (2**64 - 1)),
             struct.pack("<I", rng.randrange(14)) + rng.randbytes(rng.randrange(20)))
        )  # fmt: skip
    tensors = [
        model_files.Tensor(
            rng.choice(("a", "b", "", "token_embd.weight", "x" * 300)),
            [rng.choice((*NUMBERS, 32, 32, 64)) for _ in range(rng.choice((1, 2, 2, 4, 5)))],
            rng.choice((0, 1, 2, 8, 30, 42, 4, rng.randrange(2**32))),
            rng.choice((0, 32, 128, 4096, 2**63)),
        )
        for _ in range(rng.randrange(4))
    ]
    lies = {
        "n_tensors": rng.choice(NUMBERS),
        "n_entries": rng.choice(NUMBERS),
        "dimensions": rng.choice(NUMBERS) & 0xFFFFFFFF,
        "version": rng.randrange(5),
    }
    told = {name: lies[name] for name in lies if rng.random() < 0.15}
    return model_files.gguf(
        metadata, tensors, data=rng.randbytes(rng.choice((0, 64, 9000))), **told
    )


def _check_gguf(data: bytes, folder: Path) -> bool:
    path = folder / "model.gguf"
    path.write_bytes(data)
    info = inspect_gguf(path)
    chat_templates(path)
    if info.tensor_bytes > len(data):
        raise Wrong(f"{info.tensor_bytes} bytes of tensors in a file of {len(data)}")
    return True


CHECKPOINT: dict[str, Any] = {
    "config.json": model_files.CONFIG,
    "tokenizer.json": {"model": {"vocab": {"a": 0}}},
    "model.safetensors.index.json": {
        "metadata": {"total_size": 22},
        "weight_map": {
            "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
        },
    },
    "model-00001-of-00002.safetensors": model_files.safetensors(),
    "model-00002-of-00002.safetensors": model_files.safetensors(),
}  # fmt: skip
HEADER = {"a": model_files.tensor_entry(), "b": model_files.tensor_entry((3,), 16, 22, "F16")}


def _checkpoint(rng: random.Random) -> bytes:
    files = {
        name: value if isinstance(value, bytes) else json_bytes(value)
        for name, value in CHECKPOINT.items()
    }
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice([*CHECKPOINT, "model-00001-of-00002.safetensors"])
        value = CHECKPOINT[name]
        if rng.random() < 0.08:
            misplace(rng, files, name)
        elif isinstance(value, bytes):
            files[name] = _shard(rng, value)
        else:
            files[name] = mutate_json(rng, value)
    return pack(files)


def _shard(rng: random.Random, whole: bytes) -> bytes:
    if rng.random() < 0.4:
        return mutate_bytes(rng, whole)
    length = rng.choice((None, None, None, rng.choice(NUMBERS)))
    return model_files.safetensors(mutate_json(rng, HEADER), None, length)


def _check_checkpoint(data: bytes, folder: Path) -> bool:
    files = lay_out(data, folder)
    info = check_checkpoint(folder)
    if any(content.startswith(LINK + b"..") for content in files.values()):
        raise Wrong("a link out of the folder was taken")
    return info.parameters >= 0


MODELS = (
    Target("gguf", "gguf_file.inspect_gguf, chat_templates", _gguf, _check_gguf, (SourceError,)),
    Target(
        "checkpoint",
        "checkpoint.check_checkpoint (safetensors)",
        _checkpoint,
        _check_checkpoint,
        (SourceError,),
    ),
)
