"""Strict records to YAML text, with a comment above each line that has one. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

Path = tuple[str | int, ...]
"""Where a value stands in a document: the keys and the positions that lead to it."""
Notes = Mapping[Path, str]
"""Comments, by the place of the value they speak of."""

WIDTH = 100
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""The faster ones where PyYAML has them; they read and write alike."""


class Spec(BaseModel):
    """A part of a document: a field is written in camel case, or as its serialization alias."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


def document(value: BaseModel | Mapping[str, Any], notes: Notes | None = None) -> str:
    """One YAML document; raises KeyError where a note speaks of a place that is not there."""
    plain = _plain(value)
    text = yaml.dump(plain, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=10_000)
    return _with_comments(text, notes or {})


def file(header: Iterable[str], documents: Iterable[str]) -> str:
    """A file of several documents below a comment; lines of `header` are kept as they are."""
    return "".join(f"# {line}\n" for line in header) + "---\n".join(documents)


def under(prefix: Path, notes: Notes) -> dict[Path, str]:
    """The same notes for a document in which all stands below `prefix`."""
    return {(*prefix, *path): note for path, note in notes.items()}


def _plain(value: Any) -> Any:
    """Plain dictionaries and lists, without what is None."""
    if isinstance(value, BaseModel):
        value = {
            info.serialization_alias or to_camel(name): getattr(value, name)
            for name, info in type(value).model_fields.items()
        }
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _with_comments(text: str, notes: Notes) -> str:
    lines = text.splitlines(keepends=True)
    root = yaml.compose(text, Loader=_LOADER)
    placed: dict[int, list[str]] = {}
    for path, note in notes.items():
        placed.setdefault(_line_of(root, path), []).append(note)
    for number in sorted(placed, reverse=True):
        indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
        lines[number:number] = [_comment(note, indent) for note in placed[number]]
    return "".join(lines)


def _line_of(node: yaml.Node | None, path: Path) -> int:
    """The number of the line on which the value at `path` begins, its key included."""
    line = 0
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, item) for key, item in node.value if key.value == str(step)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            found = [(item, item) for item in node.value[step : step + 1]]
        else:
            found = []
        if not found:
            raise KeyError(path)
        mark, node = found[0]
        line = mark.start_mark.line
    return line


def _comment(text: str, indent: str) -> str:
    wrapped = textwrap.wrap(text, WIDTH - len(indent) - 2, break_long_words=False)
    return "".join(f"{indent}# {line}\n" for line in wrapped)
