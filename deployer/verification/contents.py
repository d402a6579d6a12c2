"""What the small files hold: no code asked for, no disguised program; chat templates are found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.artifacts import SBOM, FileEntry, Manifest
from deployer.errors import Fault, SourceError
from deployer.gguf_file import chat_templates
from deployer.verification.reading import MAX_JSON, Unreadable, parse_json, read_file, read_text

MAX_TEMPLATE = 256 << 10
MAX_TOKENIZER = 128 << 20
"""Bytes of a tokenizer's files; beyond `MAX_JSON` only their size is looked at."""
_TOKENIZERS = ("tokenizer.json", "vocab.json", "added_tokens.json")
_WEIGHTS = (".gguf", ".safetensors")
_DISGUISES = {
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x7fELF": "a program",
    b"MZ\x90": "a program",
    b"#!": "a script",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a numpy file",
    **{bytes((0x80, protocol)): "a pickle" for protocol in range(2, 6)},
}
"""First bytes of what must not lie in a bundle under another name."""
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
"""Settings by which the libraries run Python code of the model's repository."""


@dataclass(frozen=True)
class Template:
    """A chat template: the file it stands in, which one there, its text.

    `default` is true of the one that a plain chat is rendered with.
    """

    file: str
    name: str
    text: str
    default: bool


def check_contents(root: Path, manifest: Manifest) -> tuple[list[Template], list[Fault]]:
    """(the chat templates there are, what is wrong with the files that are no weights)."""
    templates: list[Template] = []
    faults: list[Fault] = []
    for entry in manifest.files:
        try:
            templates += _examine(root / entry.path, entry)
        except Unreadable as error:
            faults.append(Fault(entry.path, str(error)))
    return templates, faults


def _examine(path: Path, entry: FileEntry) -> list[Template]:
    """The templates of one file; raises Unreadable where the file must not be used."""
    if path.suffix == ".gguf":
        return _gguf_templates(path)
    if path.suffix in _WEIGHTS:
        return []
    limit = MAX_TOKENIZER if _of_tokenizer(path) else MAX_JSON
    if entry.size > limit:
        raise Unreadable(f"has over {limit} bytes")
    _refuse_disguises(path)
    if path.suffix == ".jinja":
        text = read_text(path, MAX_TEMPLATE)
        return [Template(path.name, path.name, text, path.name == "chat_template.jinja")]
    if path.suffix == ".json" and path.name != SBOM and entry.size <= MAX_JSON:
        return _json_templates(path)
    return []


def _of_tokenizer(path: Path) -> bool:
    return path.name in _TOKENIZERS or path.suffix in (".model", ".tiktoken", ".txt")


def _refuse_disguises(path: Path) -> None:
    with path.open("rb") as stream:
        head = stream.read(8)
    for magic, what in _DISGUISES.items():
        if head.startswith(magic):
            raise Unreadable(f"is {what} under another name")


def _gguf_templates(path: Path) -> list[Template]:
    try:
        found = chat_templates(path)
    except SourceError:  # the check of its structure says it
        return []
    for key, text in found.items():
        if len(text) > MAX_TEMPLATE:
            raise Unreadable(f"has a chat template of {len(text)} characters ({key})")
    return [
        Template(path.name, key, text, key == "tokenizer.chat_template")
        for key, text in found.items()
    ]


def _json_templates(path: Path) -> list[Template]:
    value = parse_json(read_file(path, MAX_JSON))
    if path.name.endswith("config.json"):
        for key in _code_asked(value):
            raise Unreadable(f"asks for code of the model's own repository ({key})")
    if path.name in _TOKENIZERS or not isinstance(value, Mapping):
        return []
    return list(_told_templates(path.name, value.get("chat_template")))


def _code_asked(value: Any) -> Iterator[str]:
    """Every setting, however deep, that asks for code; without recursion."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            yield from (key for key in _CODE_KEYS if each.get(key))
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)


def _told_templates(file: str, told: Any) -> Iterator[Template]:
    """The setting `chat_template`: one text, or several by name; raises Unreadable else."""
    named: Any = told
    if told is None:
        return
    if isinstance(told, str):
        named = {"default": told}
    elif isinstance(told, list):
        named = {each.get("name"): each.get("template") for each in told if isinstance(each, dict)}
    if not isinstance(named, dict):
        raise Unreadable("has a chat_template that is no text")
    for name, text in named.items():
        if not isinstance(text, str) or len(text) > MAX_TEMPLATE:
            raise Unreadable(f"has a chat template that is no text of bounded length ({name})")
        yield Template(file, str(name), text, name == "default")
