"""`--set FIELD=VALUE`: takes one apart, and puts its value into a document that was read."""

from __future__ import annotations

from typing import Any

from deployer.errors import UsageError
from deployer.recipe.document import MAX_BYTES, Document, load


def split_override(override: str) -> tuple[tuple[str, ...], Any]:
    """`a.b=value` as its keys and its value; raises UsageError where it is none.

    The value is what YAML makes of it, under the same bounds as a file; else the text as it stands.
    """
    name, equals, text = override.partition("=")
    keys = tuple(name.split("."))
    if not equals or not all(keys):
        raise UsageError(
            f"--set {override!r} is not FIELD=VALUE", "For example: --set serve.port=9000"
        )
    document = Document()
    if len(text) < MAX_BYTES:
        load(text, document)
    else:
        document.data = text
    return keys, text if document.problems else document.data


def section_around(document: Document, keys: tuple[str, ...]) -> dict[str, Any]:
    """The section that holds the field; sections that are not there are made."""
    section: dict[str, Any] = document.data
    for key in keys[:-1]:
        if not isinstance(section.get(key), dict):
            section[key] = {}
        section = section[key]
    return section


def assign(document: Document, keys: tuple[str, ...], value: Any) -> None:
    """Set a field; what is wrong with it from now on stands on no line of the file."""
    section_around(document, keys)[keys[-1]] = value
    for location in [at for at in document.lines if at[: len(keys)] == keys]:
        del document.lines[location]
