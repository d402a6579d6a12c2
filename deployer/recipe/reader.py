"""Reads a recipe file: the YAML, its paths, overrides, then the strict models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from deployer.errors import Problem, RecipeError
from deployer.recipe.document import Document, dotted, parse, validate
from deployer.recipe.model import ALTERNATIVES, PATH_FIELDS, SOURCES, TEXTS, Recipe
from deployer.recipe.overrides import assign, section_around, split_override


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `a.b=value` overrides.

    Paths in the file are relative to its folder, paths in overrides to the working directory;
    the result holds absolute ones. Raises RecipeError with every problem, UsageError for an
    override without "=".
    """
    document = parse(path, "recipe")
    _make_paths_absolute(document.data, path.resolve().parent)
    return _finish(document, overrides, path)


SECTIONS_WITH_FILES = ("source", "calibration", "quality", "serve", "loadtest")


def override_recipe(
    recipe: Mapping[str, Any],
    overrides: Sequence[str],
    files: Sequence[str] = ("serve",),
    name: str = "the bundle's recipe",
) -> Recipe:
    """Apply `a.b=value` overrides to a recipe that was read before, as a manifest holds it.

    A bundle may be older than this release: fields it no longer knows are left out. The files
    named in the sections `files` must be there. Errors call it `name`.
    """
    data = _known(json.loads(json.dumps(recipe)), Recipe)
    return _finish(Document(data), overrides, name, files)


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
    document: Document,
    overrides: Sequence[str],
    name: Path | str,
    files: Sequence[str] = SECTIONS_WITH_FILES,
) -> Recipe:
    """Override, validate, and see that the files named in the sections `files` exist."""
    for override in overrides:
        _apply(document, override)
    recipe = validate(document, Recipe)
    document.problems.extend(_missing_files(document, files))
    if recipe is None or document.problems:
        raise RecipeError(name, document.sorted_problems)
    return recipe


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


def _apply(document: Document, override: str) -> None:
    keys, value = split_override(override)
    if keys in PATH_FIELDS and isinstance(value, str):
        value = _located(keys, value, Path.cwd())
    section = section_around(document, keys)
    if keys[0] == "source" and keys[-1] in SOURCES:
        section.clear()  # naming another source replaces the one of the file
    if value is not None and keys[1:] in [(name,) for name in ALTERNATIVES.get(keys[0], ())]:
        _clear_alternatives(section, *keys)
    assign(document, keys, value)


def _clear_alternatives(section: dict[str, Any], name: str, chosen: str) -> None:
    """Naming another text replaces the one of the file."""
    others = (
        ALTERNATIVES[name] if chosen == "dataset" else (*ALTERNATIVES[name], "revision", "file")
    )
    for other in others:
        section.pop(other, None)


def _missing_files(document: Document, sections: Sequence[str]) -> list[Problem]:
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
            problems.append(Problem(dotted(at), f"there is no {kind} {value}", document.line(at)))
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
