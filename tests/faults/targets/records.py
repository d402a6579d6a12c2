"""What deployer and engines wrote themselves, and a crash or a disk may have damaged."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from fuzzing import Target
from mutating import mutate_bytes, mutate_json, mutate_text

from deployer.engine_metrics import read_engine_metrics
from deployer.footprint import Footprint
from deployer.memo import DigestMemo
from deployer.serving.state import ServerFolder
from deployer.store import Store
from deployer.verification import Examined


def _record(rng: random.Random) -> bytes:
    entry = {"path": "a.bin", "size": 1, "sha256": "0" * 64}
    examples: tuple[Any, ...] = (
        {"1:2:3": "ab" * 32},
        {"rules": 1, "passed": ["ab" * 32]},
        {"files": [entry], "mtime_ns": {"a.bin": 1}, "info": {"word": "x"}},
        {"name": "x", "endpoint": "http://127.0.0.1:1", "supervisor_pid": 1, "engine_pid": None,
         "bundle": "b", "log": "l", "state": "ready", "server": "s", "model": "m"},
        {"digest": "a", "measured": True, "memory_bytes": 1, "server": "x", "device": "cpu",
         "context": 1, "parallel": 1, "threads": 1},
    )  # fmt: skip
    number = rng.randrange(len(examples))
    return bytes([number]) + mutate_json(rng, examples[number])


def _check_record(data: bytes, folder: Path) -> bool:
    """None of these files may stop a command: what cannot be read is as if it were not there."""
    number, content = data[0], data[1:]
    path = folder / "record.json"
    path.write_bytes(content)
    if number == 0:
        DigestMemo.load(path).knows(path)
    elif number == 1:
        Examined.load(path).knows("x")
    elif number == 2:
        store = Store(folder / "store")
        root = store.path("quantize", "ab" * 32)
        root.mkdir(parents=True)
        (root / "a.bin").write_bytes(b"x")
        path.rename(store.record_path("quantize", "ab" * 32))
        store.find("quantize", "ab" * 32)
    elif number == 3:
        path.rename(folder / "state.json")
        ServerFolder(folder).current()
    else:
        try:
            Footprint.model_validate_json(content)
        except ValueError:
            return False
    return True


METRICS = (
    "# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.\n"
    "# TYPE llamacpp:prompt_tokens_total counter\nllamacpp:prompt_tokens_total 41\n"
    "llamacpp:tokens_predicted_total 512\nllamacpp:requests_processing 2\n"
    "llamacpp:requests_deferred 0\n",
    'vllm:num_requests_running{engine="0",model_name="a\\"b"} 1.0\n'
    'vllm:generation_tokens_total{engine="0"} 1.5e+06\nvllm:kv_cache_usage_perc{engine="0"} 0.25\n'
    'vllm:time_to_first_token_seconds_bucket{le="+Inf"} 3.0\n# EOF\n',
)


def _metrics(rng: random.Random) -> bytes:
    text = rng.choice(METRICS)
    if rng.random() < 0.5:
        return mutate_text(rng, text).encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, text.encode())


def _check_metrics(data: bytes, _folder: Path) -> bool:
    found = read_engine_metrics(data.decode("utf-8", "replace"))
    return found.running is not None


RECORDS = (
    Target(
        "records",
        "memo, examined, store, server and footprint records",
        _record,
        _check_record,
        (),
    ),
    Target("metrics", "engine_metrics.read_engine_metrics", _metrics, _check_metrics, ()),
)
