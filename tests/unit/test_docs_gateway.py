"""docs/gateway.md has a row for every field of a deployment, with its default, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deployer.recipe import Serve
from deployer.recipe.deployment import Deployment

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")
ROWS = {
    name: [cell.strip() for cell in line.split("|")[1:-1]]
    for line in TEXT.splitlines()
    if (name := (re.match(r"\| `([\w.*]+)` \|", line) or [None, None])[1])
}


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field that is no section, by its dotted name; * for a user's name or a list's place."""
    for name, info in model.model_fields.items():
        section, many = section_of(info.annotation)
        if section is None or section is Serve:  # docs/serve.md has the fields of `serve`
            yield f"{prefix}{name}", info
        else:
            yield from leaves(section, f"{prefix}{name}." + ("*." if many else ""))


def section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section in an annotation, and whether there may be many of it."""
    if isinstance(annotation, type):
        return (annotation, False) if issubclass(annotation, BaseModel) else (None, False)
    for inner in get_args(annotation):
        found, _ = section_of(inner)
        if found is not None:
            return found, "tuple[" in str(annotation) or "dict[" in str(annotation)
    return None, False


FIELDS = dict(leaves(Deployment))


def default_of(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    return f"`{json.dumps({} if isinstance(value, Serve) else value)}`"


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_stands_in_the_document_with_its_default(name: str) -> None:
    assert name in ROWS, f"docs/gateway.md has no row for {name}"
    assert ROWS[name][1] == default_of(FIELDS[name])


def test_the_document_has_no_field_that_does_not_exist() -> None:
    assert set(ROWS) == set(FIELDS)


def test_its_example_is_valid() -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    Deployment.model_validate_json(json.dumps(yaml.safe_load(block)))
