"""Reads a recipe file: bounded YAML with line numbers, overrides, then the strict models.

Every problem is reported at once, with its line; nothing in the file can make the reader run
code, recurse without end or expand into more than `MAX_NODES` values.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from deployer.errors import Problem, RecipeError, UsageError
from deployer.recipe.model import ALTERNATIVES, PATH_FIELDS, SOURCES, TEXTS, Recipe

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20
MAX_NODES = 2_000
MAX_NUMBER = 100
_SHOWN = 60

_SCALARS = {
    f"tag:yaml.org,2002:{name}": name
    for name in ("str", "int", "float", "bool", "null", "timestamp", "value")
}
Location = tuple[str | int, ...]


class _Unreadable(Exception):
    """The YAML cannot be read on: a problem that ends the reading."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.problem = Problem("", message, line)


class _BoundedLoader(yaml.SafeLoader):
    """SafeLoader whose node graph has a bounded depth and size."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH:
            raise _Unreadable(f"nested more than {MAX_DEPTH} levels deep", mark.line + 1)
        if self.nodes > MAX_NODES:
            raise _Unreadable(f"holds more than {MAX_NODES} values", mark.line + 1)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


@dataclass
class _Document:
    """The recipe as plain data, the line of every field, and what was wrong so far."""

    data: Any = None
    lines: dict[Location, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    nodes: int = 0

    def line(self, location: Location) -> int | None:
        """The line of a field, or of the nearest section around it."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.lines:
                return self.lines[location[:end]]
        return None


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `a.b=value` overrides.

    Paths in the file are relative to its folder, paths in overrides to the working directory;
    the result holds absolute ones. Raises RecipeError with every problem, UsageError for an
    override without "=".
    """
    document = _parse(path)
    if not document.problems and not isinstance(document.data, dict):
        document.problems.append(Problem("", "a recipe is a mapping of sections", 1))
    if document.problems:
        raise RecipeError(path, document.problems)
    _make_paths_absolute(document.data, path.resolve().parent)
    return _finish(document, overrides, path)


SECTIONS_WITH_FILES = ("source", "calibration", "quality", "serve")


def override_recipe(
    recipe: Mapping[str, Any], overrides: Sequence[str], files: Sequence[str] = ("serve",)
) -> Recipe:
    """Apply `a.b=value` overrides to a recipe that was read before, as a manifest holds it.

    A bundle may be older than this release: fields it no longer knows are left out. The files
    named in the sections `files` must be there.
    """
    data = _known(json.loads(json.dumps(recipe)), Recipe)
    return _finish(_Document(data), overrides, "the bundle's recipe", files)


def _known(data: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """`data` without the keys that `section` and the sections in it do not have."""
    kept = {}
    for name, known in section.model_fields.items():
        if name not in data:
            continue
        value, inner = data[name], known.annotation
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, BaseModel):
            value = _known(value, inner)
        kept[name] = value
    return kept


def _finish(
    document: _Document,
    overrides: Sequence[str],
    name: Path | str,
    files: Sequence[str] = SECTIONS_WITH_FILES,
) -> Recipe:
    """Override, validate, and see that the files named in the sections `files` exist."""
    for override in overrides:
        _apply(document, override)
    recipe = _validate(document)
    document.problems.extend(_missing_files(document, files))
    if recipe is None or document.problems:
        raise RecipeError(name, sorted(document.problems, key=lambda p: p.line or 0))
    return recipe


def _parse(path: Path) -> _Document:
    document = _Document()
    try:
        text = _read_text(path)
    except _Unreadable as unreadable:
        document.problems.append(unreadable.problem)
    else:
        _load(text, document)
    return document


def _load(text: str, document: _Document) -> None:
    """Parse `text` into `document`, with all that is wrong with it as YAML."""
    try:
        loader = _BoundedLoader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        if node is not None:
            document.data = _construct(node, (), document)
    except _Unreadable as unreadable:
        document.problems.append(unreadable.problem)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = f"not valid YAML: {error.problem or error.context}"
        document.problems.append(Problem("", message, mark.line + 1 if mark else None))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.problems.append(Problem("", f"not valid YAML: {error.reason}", line))


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder, not a recipe", "Name a YAML file.")
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no recipe {path}", "`ls recipes/` shows the ones that ship."
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise _Unreadable(f"larger than {MAX_BYTES // 1024} KiB; this is no recipe", 1)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _Unreadable("not UTF-8 text", line) from error


def _construct(node: yaml.Node, at: Location, document: _Document) -> Any:
    """Plain data from a node; counts what aliases expand to, and notes every field's line."""
    document.nodes += 1
    line = node.start_mark.line + 1
    if document.nodes > MAX_NODES:
        raise _Unreadable(f"aliases expand to more than {MAX_NODES} values", line)
    if len(at) > MAX_DEPTH:
        raise _Unreadable("an alias contains itself", line)
    document.lines.setdefault(at, line)
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        return _construct_mapping(node, at, document)
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [_construct(item, (*at, i), document) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
        return _construct_scalar(node, at, document)
    document.problems.append(Problem(_dotted(at), f"the tag {node.tag!r} is not allowed", line))
    return None


def _construct_mapping(node: yaml.MappingNode, at: Location, document: _Document) -> Any:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
            document.problems.append(Problem(_dotted(at), "keys must be plain words", line))
            continue
        key = key_node.value
        if key in result:
            first = document.lines[(*at, key)]
            message = f"given twice, first on line {first}"
            document.problems.append(Problem(_dotted((*at, key)), message, line))
        document.lines[(*at, key)] = line
        result[key] = _construct(value_node, (*at, key), document)
    return result


def _construct_scalar(node: yaml.ScalarNode, at: Location, document: _Document) -> Any:
    kind = _SCALARS[node.tag]
    if kind in ("str", "timestamp", "value"):
        return node.value
    try:
        if len(node.value) > MAX_NUMBER:  # PyYAML takes quadratic time for a long one
            raise ValueError
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, LookupError, ArithmeticError):  # "!!int ''", "!!bool x", "!!float 1:60:…"
        message = f"{_shorten(node.value)} is not a valid {kind}"
        document.problems.append(Problem(_dotted(at), message, node.start_mark.line + 1))
        return None


def _make_paths_absolute(data: dict[str, Any], base: Path) -> None:
    for section, name in PATH_FIELDS:
        values = data.get(section)
        if isinstance(values, dict) and isinstance(values.get(name), str) and values[name]:
            values[name] = _located((section, name), values[name], base)
    for adapter in _adapters(data):
        adapter["path"] = _absolute(adapter["path"], base)


def _adapters(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The LoRA adapters of a recipe that name a folder."""
    found: Any = data
    for key in ("serve", "vllm", "lora"):
        found = found.get(key) if isinstance(found, dict) else None
    entries = found if isinstance(found, list) else []
    return [e for e in entries if isinstance(e, dict) and isinstance(e.get("path"), str)]


def _located(at: tuple[str, ...], value: str, base: Path) -> str:
    """The absolute path of a field, or the name of a text that ships as it is."""
    return value if _ships(at, value) else _absolute(value, base)


def _ships(at: tuple[str, ...], value: str) -> bool:
    return at[-1] == "text" and value in TEXTS


def _absolute(value: str, base: Path) -> str:
    if "\x00" in value:
        return value  # refused by the model's pattern, with a line
    try:
        return str(base / Path(value).expanduser())
    except RuntimeError:  # "~name" of a user who does not exist
        return str(base / value)


def _apply(document: _Document, override: str) -> None:
    name, equals, text = override.partition("=")
    keys = tuple(name.split("."))
    if not equals or not all(keys):
        raise UsageError(
            f"--set {override!r} is not FIELD=VALUE", "For example: --set serve.port=9000"
        )
    value = _override_value(text)
    if keys in PATH_FIELDS and isinstance(value, str):
        value = _located(keys, value, Path.cwd())
    section = document.data
    for key in keys[:-1]:
        if not isinstance(section.get(key), dict):
            section[key] = {}
        section = section[key]
    if keys[0] == "source" and keys[-1] in SOURCES:
        section.clear()  # naming another source replaces the one of the file
    if value is not None and keys[1:] in [(name,) for name in ALTERNATIVES.get(keys[0], ())]:
        _clear_alternatives(section, *keys)
    section[keys[-1]] = value
    for location in [at for at in document.lines if at[: len(keys)] == keys]:
        del document.lines[location]


def _clear_alternatives(section: dict[str, Any], name: str, chosen: str) -> None:
    """Naming another text replaces the one of the file."""
    others = (
        ALTERNATIVES[name] if chosen == "dataset" else (*ALTERNATIVES[name], "revision", "file")
    )
    for other in others:
        section.pop(other, None)


def _override_value(text: str) -> Any:
    """The value as YAML has it, under the same bounds as a file; else the text as it stands."""
    document = _Document()
    if len(text) < MAX_BYTES:
        _load(text, document)
    else:
        document.data = text
    return text if document.problems else document.data


def _validate(document: _Document) -> Recipe | None:
    try:
        # JSON mode: strict about types, yet a list may fill a tuple.
        return Recipe.model_validate_json(json.dumps(document.data, default=str))
    except ValidationError as error:
        for item in error.errors(include_url=False):
            location = tuple(item["loc"])
            message = _explain(item, location)
            document.problems.append(Problem(_dotted(location), message, document.line(location)))
        return None


def _explain(item: Mapping[str, Any], location: Location) -> str:
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        return f"unknown key{_nearest(str(location[-1]), _known_keys(location[:-1]))}"
    if kind == "missing":
        return "missing"
    if kind == "literal_error":
        choices = [str(choice) for choice in _choices(location)]
        if isinstance(value, str) and choices:
            return f"{_shorten(value)} is not known{_nearest(value, choices)}"
        return f"{_shorten(value)} is not {item['ctx']['expected']}"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "string_pattern_mismatch":
        return f"{_shorten(value)} has not the form this field needs"
    message = str(item["msg"]).removeprefix("Input ")
    return f"{message}, not {_shorten(value)}"


def _known_keys(location: Location) -> list[str]:
    return list(_schema_of(location).get("properties", {}))


def _choices(location: Location) -> list[Any]:
    schema = _schema_of(location)
    for option in schema.get("anyOf", [schema]):
        if "enum" in option:
            return list(option["enum"])
        if "const" in option:
            return [option["const"]]
    return []


def _schema_of(location: Location) -> dict[str, Any]:
    """The part of the JSON Schema that describes a field, {} where there is none."""
    root = _schema()
    here = root
    for key in location:
        here = here.get("properties", {}).get(key, {})
        reference = here.get("$ref")
        if reference:
            here = root["$defs"][reference.rsplit("/", 1)[-1]]
    return here


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = Recipe.model_json_schema()
    return schema


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(known)}" if known else ""


def _missing_files(document: _Document, sections: Sequence[str]) -> list[Problem]:
    problems = []
    for at in PATH_FIELDS:
        section, name = at
        values = document.data.get(section) if section in sections else None
        value = values.get(name) if isinstance(values, dict) else None
        if not isinstance(value, str) or not value or "\x00" in value or _ships(at, value):
            continue
        is_folder = at == ("source", "path")
        if not _exists(Path(value), is_folder):
            kind = "folder" if is_folder else "file"
            problems.append(Problem(_dotted(at), f"there is no {kind} {value}", document.line(at)))
    if "serve" in sections:
        problems += [
            Problem("serve.vllm.lora", f"there is no folder {adapter['path']}", None)
            for adapter in _adapters(document.data)
            if "\x00" not in adapter["path"] and not _exists(Path(adapter["path"]), True)
        ]
    return problems


def _exists(path: Path, is_folder: bool) -> bool:
    try:
        return path.is_dir() if is_folder else path.is_file()
    except OSError:  # a name too long, a folder that may not be read
        return False


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
