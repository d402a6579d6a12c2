"""Reads a YAML file into a strict model: bounded, with the line of every problem.

Every problem is reported at once; nothing in the file can make the reader run code, recurse
without end or expand into more than `MAX_NODES` values. Recipes, matrices, environments and
deployments are read by this.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from deployer.errors import Problem, RecipeError, UsageError

Model = TypeVar("Model", bound=BaseModel)
SUFFIXES = (".yaml", ".yml")
"""What tells a document of ours from a name or a folder on the command line."""
MAX_BYTES = 64 * 1024
MAX_DEPTH = 20
MAX_NODES = 2_000
MAX_NUMBER = 100
_SHOWN = 60

_SCALARS = {
    f"tag:yaml.org,2002:{name}": name
    for name in ("str", "int", "float", "bool", "null", "timestamp", "value")
}
HINTS = {
    "recipe": "`deployer schema` prints every field; docs/recipe.md explains them.",
    "matrix": "docs/compare.md explains every field.",
    "environment": "docs/recommend.md explains every field.",
    "deployment": "docs/gateway.md explains every field.",
}
"""Kind of document -> where its fields are explained."""
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
class Document:
    """A file as plain data, the line of every field, and what was wrong so far."""

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

    @property
    def sorted_problems(self) -> list[Problem]:
        return sorted(self.problems, key=lambda problem: problem.line or 0)


def read_document(path: Path, model: type[Model], kind: str) -> Model:
    """Read a YAML file as a `model`; `kind` says what it should be, for example "matrix".

    Raises RecipeError with every problem and its line, UsageError where there is no such file.
    """
    document = parse(path, kind)
    found = validate(document, model)
    if found is None or document.problems:
        raise RecipeError(path, document.sorted_problems, HINTS[kind])
    return found


def parse(path: Path, kind: str) -> Document:
    """The file as a mapping; raises RecipeError where it is none, UsageError where it is not."""
    document = Document()
    try:
        text = _read_text(path, kind)
    except _Unreadable as unreadable:
        document.problems.append(unreadable.problem)
    else:
        load(text, document)
    if not document.problems and not isinstance(document.data, dict):
        document.problems.append(Problem("", f"a {kind} is a mapping of sections", 1))
    if document.problems:
        raise RecipeError(path, document.problems, HINTS[kind])
    return document


def load(text: str, document: Document) -> None:
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


def _read_text(path: Path, kind: str) -> str:
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder, not a {kind}", "Name a YAML file.")
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no {kind} {path}", "`ls -R recipes/` shows the ones that ship."
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise _Unreadable(f"larger than {MAX_BYTES // 1024} KiB; this is no {kind}", 1)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _Unreadable("not UTF-8 text", line) from error


def _construct(node: yaml.Node, at: Location, document: Document) -> Any:
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
    document.problems.append(Problem(dotted(at), f"the tag {node.tag!r} is not allowed", line))
    return None


def _construct_mapping(node: yaml.MappingNode, at: Location, document: Document) -> Any:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
            document.problems.append(Problem(dotted(at), "keys must be plain words", line))
            continue
        key = key_node.value
        if key in result:
            first = document.lines[(*at, key)]
            message = f"given twice, first on line {first}"
            document.problems.append(Problem(dotted((*at, key)), message, line))
        document.lines[(*at, key)] = line
        result[key] = _construct(value_node, (*at, key), document)
    return result


def _construct_scalar(node: yaml.ScalarNode, at: Location, document: Document) -> Any:
    kind = _SCALARS[node.tag]
    if kind in ("str", "timestamp", "value"):
        return node.value
    try:
        if len(node.value) > MAX_NUMBER:  # PyYAML takes quadratic time for a long one
            raise ValueError
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, LookupError, ArithmeticError):  # "!!int ''", "!!bool x", "!!float 1:60:…"
        message = f"{_shorten(node.value)} is not a valid {kind}"
        document.problems.append(Problem(dotted(at), message, node.start_mark.line + 1))
        return None


def validate(document: Document, model: type[Model]) -> Model | None:
    """The document as a `model`; None where it is none, and then `problems` says why."""
    try:
        # JSON mode: strict about types, yet a list may fill a tuple.
        return model.model_validate_json(json.dumps(document.data, default=str))
    except ValidationError as error:
        for item in error.errors(include_url=False):
            location = tuple(item["loc"])
            message = _explain(item, location, model)
            document.problems.append(Problem(dotted(location), message, document.line(location)))
        return None


def _explain(item: Mapping[str, Any], location: Location, model: type[BaseModel]) -> str:
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        known = _known_keys(location[:-1], model)
        return f"unknown key{_nearest(str(location[-1]), known)}"
    if kind == "missing":
        return "missing"
    if kind == "literal_error":
        choices = [str(choice) for choice in _choices(location, model)]
        if isinstance(value, str) and choices:
            return f"{_shorten(value)} is not known{_nearest(value, choices)}"
        return f"{_shorten(value)} is not {item['ctx']['expected']}"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "string_pattern_mismatch":
        return f"{_shorten(value)} has not the form this field needs"
    message = str(item["msg"]).removeprefix("Input ")
    return f"{message}, not {_shorten(value)}"


def _known_keys(location: Location, model: type[BaseModel]) -> list[str]:
    return list(_schema_of(location, model).get("properties", {}))


def _choices(location: Location, model: type[BaseModel]) -> list[Any]:
    schema = _schema_of(location, model)
    for option in schema.get("anyOf", [schema]):
        if "enum" in option:
            return list(option["enum"])
        if "const" in option:
            return [option["const"]]
    return []


def _schema_of(location: Location, model: type[BaseModel]) -> dict[str, Any]:
    """The part of the JSON Schema that describes a field, {} where there is none."""
    root = _schema(model)
    here = root
    for key in location:
        here = here.get("items", {}) if isinstance(key, int) else _schema_of_key(key, here)
        reference = here.get("$ref")
        if reference:
            here = root["$defs"][reference.rsplit("/", 1)[-1]]
    return here


def _schema_of_key(key: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """The part for a key of a section, or of a mapping whose keys are the user's own names."""
    named = section.get("properties", {}).get(key)
    others = [section.get("additionalProperties"), *section.get("patternProperties", {}).values()]
    found = [each for each in (named, *others) if isinstance(each, dict)]
    return found[0] if found else {}


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(known)}" if known else ""


def dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
