"""YAML of strict records: comments stand above what they speak of, and change nothing."""

from __future__ import annotations

import pytest
import yaml
from pydantic import Field, ValidationError

from deployer.exporting.yaml_text import Spec, document, file, under


class Inner(Spec):
    long_name: int | None = None
    model_url: str = Field("", serialization_alias="modelURL")


class Outer(Spec):
    some_text: str = "on"
    items: tuple[Inner, ...] = ()


VALUE = Outer(items=(Inner(long_name=1), Inner(model_url="a: b # c")))


def test_names_are_in_camel_case_unless_they_say_otherwise_and_none_is_left_out() -> None:
    assert yaml.safe_load(document(VALUE)) == {
        "someText": "on",
        "items": [{"longName": 1, "modelURL": ""}, {"modelURL": "a: b # c"}],
    }


def test_a_comment_stands_above_its_value_and_changes_nothing() -> None:
    notes = {("items", 1, "modelURL"): "second", ("someText",): "first", ("items",): "all"}
    text = document(VALUE, notes)
    assert yaml.safe_load(text) == yaml.safe_load(document(VALUE))
    lines = [line.strip() for line in text.splitlines()]
    assert lines[lines.index("# second") + 1] == "- modelURL: 'a: b # c'"
    assert lines[lines.index("# first") + 1] == "someText: 'on'"
    assert lines[lines.index("# all") + 1] == "items:"


def test_a_long_comment_is_wrapped_and_stays_a_comment() -> None:
    text = document(VALUE, {("items", 0, "longName"): "word " * 60})
    assert max(map(len, text.splitlines())) <= 100
    assert yaml.safe_load(text) == yaml.safe_load(document(VALUE))


@pytest.mark.parametrize(
    "path", [("missing",), ("items", 2), ("items", "longName"), ("someText", 0)]
)
def test_a_comment_on_nothing_is_a_mistake(path: tuple[str | int, ...]) -> None:
    with pytest.raises(KeyError):
        document(VALUE, {path: "lost"})


def test_notes_move_below_a_prefix() -> None:
    assert under(("spec",), {("a", 0): "why"}) == {("spec", "a", 0): "why"}


def test_a_file_holds_its_header_and_every_document() -> None:
    text = file(["One.", "Two."], [document(VALUE), document({"b": 2})])
    assert text.startswith("# One.\n# Two.\nsomeText")
    assert list(yaml.safe_load_all(text))[1] == {"b": 2}


def test_unknown_fields_and_wrong_types_are_refused() -> None:
    with pytest.raises(ValidationError, match="longname"):
        Inner(longname=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        Inner(long_name="1")  # type: ignore[arg-type]
