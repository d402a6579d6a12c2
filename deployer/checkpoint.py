"""A checkpoint folder is checked here before any other program may open it.

Only safetensors weights and JSON, text and tokenizer files are taken over. Headers are read with
bounded memory; sizes, offsets, shard names and links are compared with what is really there.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from deployer.artifacts import Record
from deployer.errors import SourceError

INDEX = "model.safetensors.index.json"
MAX_HEADER = 16 << 20
MAX_JSON = 16 << 20
"""Bytes; parsed they take up to 25 times as much memory. The largest known are below 10 MB."""
MAX_DIMENSIONS = 8
WEIGHTS = "*.safetensors"
WANTED = (
    WEIGHTS, "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*",
    "USE_POLICY*", "README.md",
)  # fmt: skip
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5")
_SHARD = re.compile(r"^(.+)-(\d{5})-of-(\d{5})\.safetensors$")
_DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class _Tensor(NamedTuple):
    """First byte, byte after the last, number of values, and their type."""

    begin: int
    end: int
    elements: int
    type: str


class CheckpointInfo(Record):
    """What a checked checkpoint holds.

    `parameters` counts stored numbers, `types` the tensors of each type; `tensor_bytes` is what
    they take, `bytes` the size of the files.
    """

    architecture: str
    parameters: int
    types: dict[str, int]
    tensor_bytes: int
    bytes: int
    shards: int


def wanted_files(names: Iterable[str]) -> list[str]:
    """The files of a repository that a checkpoint consists of: top level only, no code."""
    return sorted(
        name
        for name in names
        if "/" not in name and any(PurePosixPath(name).match(pattern) for pattern in WANTED)
    )


def require_safetensors(names: Iterable[str], where: str) -> None:
    """Raise SourceError unless there are safetensors weights; names what is there instead."""
    names = list(names)
    if any(PurePosixPath(name).suffix == ".safetensors" for name in wanted_files(names)):
        return
    pickles = [name for name in names if PurePosixPath(name).suffix in PICKLES]
    if pickles:
        raise SourceError(
            f"{where} has its weights only as {pickles[0]}, a format that can run code when it "
            "is loaded",
            "Use a repository or revision with *.safetensors weights.",
        )
    raise SourceError(
        f"{where} holds no *.safetensors weights", "Check the repository's name and revision."
    )


def check_checkpoint(folder: Path) -> CheckpointInfo:
    """Check a checkpoint folder; raises SourceError naming the file and what is wrong with it."""
    try:
        return _check(folder)
    except OSError as error:
        raise SourceError(
            f"{error.filename or folder} cannot be read: {error.strerror}",
            "Fetch the checkpoint again, or mend its permissions.",
        ) from error


def _check(folder: Path) -> CheckpointInfo:
    require_safetensors([p.name for p in folder.iterdir()], str(folder))
    _refuse_escaping_links(folder)
    architecture = _check_config(folder)
    shards = _check_index(folder)
    tensors = [tensor for shard in shards for tensor in _check_shard(folder / shard)]
    if not any(tensor.elements for tensor in tensors):
        raise SourceError(f"{folder} holds no weights", "Fetch the checkpoint again.")
    return CheckpointInfo(
        architecture=architecture,
        parameters=sum(tensor.elements for tensor in tensors),
        types=dict(sorted(Counter(tensor.type for tensor in tensors).items())),
        tensor_bytes=sum(tensor.end - tensor.begin for tensor in tensors),
        bytes=sum((folder / shard).stat().st_size for shard in shards),
        shards=len(shards),
    )


def _refuse_escaping_links(folder: Path) -> None:
    for path in folder.iterdir():
        if not path.is_symlink():
            continue
        try:
            inside = path.resolve(strict=True).is_relative_to(folder.resolve())
        except (OSError, RuntimeError) as error:  # 3.11 says RuntimeError for a loop
            raise SourceError(f"{path} is a link to nothing", "Fetch the file.") from error
        if not inside:
            raise SourceError(
                f"{path} is a link to a file outside the checkpoint",
                "Copy the file into the folder.",
            )


def _check_config(folder: Path) -> str:
    config = _read_json(folder / "config.json")
    if config.get("auto_map"):
        raise SourceError(
            f"{folder / 'config.json'} asks for the repository's own code (auto_map)",
            "Such models are refused; use one whose architecture the libraries know.",
        )
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise SourceError(f"{folder / 'config.json'} does not name its architecture")
    return names[0]


def _check_index(folder: Path) -> list[str]:
    """The shard names, as the index has them where there is one, else the folder's."""
    present = {path.name for path in folder.glob(WEIGHTS)}
    if not (folder / INDEX).exists():
        _require_all_parts(folder, present)
        return sorted(present)
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{folder / INDEX} has no weight_map")
    listed = {str(name) for name in weight_map.values()}
    for name in sorted(listed):
        if name != PurePosixPath(name).name or name in ("", ".", ".."):
            raise SourceError(f"{folder / INDEX} names the file {name!r}, outside the checkpoint")
        if name not in present:
            raise SourceError(
                f"{name} is missing from {folder}; {INDEX} lists it", "Fetch the checkpoint again."
            )
    # A converter that goes by names would take it for a part of the model.
    extra = sorted(name for name in present - listed if _SHARD.match(name))
    if extra:
        raise SourceError(
            f"{folder} holds {extra[0]}, which {INDEX} does not list",
            "Two versions may be mixed: fetch the checkpoint into an empty folder.",
        )
    return sorted(listed)


def _require_all_parts(folder: Path, present: set[str]) -> None:
    """Without an index the parts' own names tell how many there should be."""
    for name in sorted(present):
        part = _SHARD.match(name)
        for number in range(1, int(part[3]) + 1) if part else ():
            sibling = f"{part[1]}-{number:05}-of-{part[3]}.safetensors" if part else ""
            if sibling not in present:
                raise SourceError(
                    f"{sibling} is missing from {folder}", "Fetch the checkpoint again."
                )


def _check_shard(path: Path) -> list[_Tensor]:
    """Check one safetensors file; gives its tensors in the order of their bytes."""
    if not path.is_file():
        raise SourceError(f"{path} is no file", "Fetch the checkpoint again.")
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise SourceError(f"{path} is cut off: {size} bytes")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(MAX_HEADER, size - 8):
            raise SourceError(
                f"{path} says its header has {length} bytes; the file has {size}",
                "The file is damaged or cut off; fetch it again.",
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} has an unreadable header: {error}") from error
    if not isinstance(header, dict):
        raise SourceError(f"{path} has a header that is no table of tensors")
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    try:
        tensors = sorted(_tensor(entry) for entry in entries)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{path} describes a tensor wrongly: {error}") from error
    end = 0
    for tensor in tensors:
        if tensor.begin != end:
            raise SourceError(f"{path} has overlapping or missing bytes at offset {tensor.begin}")
        end = tensor.end
    if 8 + length + end != size:
        raise SourceError(
            f"{path} should have {8 + length + end} bytes and has {size}",
            "The file is cut off or damaged; fetch it again.",
        )
    return tensors


def _tensor(entry: dict[str, Any]) -> _Tensor:
    """A tensor as its entry describes it."""
    begin, stop = entry["data_offsets"]
    count = 1
    if len(entry["shape"]) > MAX_DIMENSIONS:
        raise ValueError(f"{len(entry['shape'])} dimensions")
    for width in entry["shape"]:
        if not isinstance(width, int) or width < 0:
            raise ValueError(f"shape {entry['shape']}")
        count *= width
    bits = _DTYPE_BITS[entry["dtype"]]
    if (stop - begin) * 8 != count * bits:
        raise ValueError(f"{entry['dtype']} {entry['shape']} in {stop - begin} bytes")
    return _Tensor(int(begin), int(stop), count, str(entry["dtype"]))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON:
            raise SourceError(f"{path} is larger than {MAX_JSON >> 20} MiB")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SourceError(
            f"{path.name} is missing from {path.parent}", "Fetch the checkpoint again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path} is not a JSON object")
    return value
