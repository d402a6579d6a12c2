"""What small files may hold: no code asked for, no disguised program, bounded templates."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import model_files
import pytest
from bundle_files import CHAT, put, write_bundle

from deployer.artifacts import SBOM, Bundle
from deployer.errors import Fault
from deployer.verification.contents import MAX_TEMPLATE, Template, check_contents
from deployer.verification.sbom import check_sbom
from deployer.verification.structure import check_structure
from deployer.verification.templates import MAX_TEMPLATES, check_templates


def contents(root: Path) -> tuple[list[Template], list[Fault]]:
    return check_contents(root, Bundle.read(root).manifest)


def test_every_chat_template_is_found(tmp_path: Path) -> None:
    more = {
        "chat_template.json": {"chat_template": "of a processor"},
        "tokenizer_config.json": {
            "chat_template": [
                {"name": "default", "template": "usual"},
                {"name": "rag", "template": "documents"},
            ]
        },
        "more.jinja": "more",
    }
    templates, faults = contents(write_bundle(tmp_path / "bundle", more=more))
    assert faults == []
    assert {(each.file, each.name, each.text, each.default) for each in templates} == {
        ("chat_template.jinja", "chat_template.jinja", CHAT, True),
        ("chat_template.json", "default", "of a processor", True),
        ("more.jinja", "more.jinja", "more", False),
        ("model.gguf", "tokenizer.chat_template", CHAT, True),
        ("tokenizer_config.json", "default", "usual", True),
        ("tokenizer_config.json", "rag", "documents", False),
    }


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "asks for code .*auto_map"),
        ("config.json", {"text_config": {"auto_map": {"a": "b"}}}, "asks for code .*auto_map"),
        ("tokenizer_config.json", {"auto_map": ["a", None]}, "asks for code .*auto_map"),
        ("x_config.json", [{"trust_remote_code": True}], "asks for code .*trust_remote_code"),
        ("config.json", {"custom_pipelines": {"x": {"impl": "m.P"}}}, "asks for code"),
        ("config.json", '{"a": 1, "a": 2}', "stands twice in one object"),
        ("config.json", '{"a":' * 50_000, "nested too deeply"),
        ("vocab.json", "[" * 50_000, "nested too deeply"),
        ("tokenizer.json", "{", "not valid JSON"),
        ("chat_template.jinja", b"\xff\xfe", "no UTF-8 text"),
        ("chat_template.jinja", "x" * (MAX_TEMPLATE + 1), "has over 262144 bytes"),
        ("tokenizer_config.json", {"chat_template": 7}, "chat_template that is no text"),
        ("tokenizer_config.json", {"chat_template": {"a": 7}}, "no text of bounded length"),
        ("tokenizer_config.json", {"chat_template": "x" * (MAX_TEMPLATE + 1)}, "bounded length"),
        ("tokenizer_config.json", {"chat_template": [{"name": "a"}]}, "no text of bounded length"),
        ("tokenizer.model", b"\x80\x04\x95", "is a pickle under another name"),
        ("LICENSE", b"PK\x03\x04zip", "is a zip archive under another name"),
        ("README.md", b"#!/bin/sh\n", "is a script under another name"),
        ("merges.txt", b"\x7fELF", "is a program under another name"),
        ("NOTICE", b"\x1f\x8b\x08", "is a gzip archive under another name"),
    ],
)
def test_files_that_must_not_be_opened(tmp_path: Path, name: str, content: Any, words: str) -> None:
    root = write_bundle(tmp_path / "bundle", more={name: content})
    _, (fault,) = contents(root)
    assert fault.file == name
    assert re.search(words, fault.problem), fault.problem


def test_a_token_named_like_a_setting_is_no_code(tmp_path: Path) -> None:
    more = {"vocab.json": {"auto_map": 1, "trust_remote_code": 2}}
    assert contents(write_bundle(tmp_path / "bundle", more=more))[1] == []


def test_settings_that_ask_for_no_code(tmp_path: Path) -> None:
    more = {"config.json": {"auto_map": {}, "trust_remote_code": False, "limits": [0.0, 1e300]}}
    assert contents(write_bundle(tmp_path / "bundle", more=more))[1] == []


def test_a_template_in_a_gguf_file_is_bounded(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle")
    told = {"tokenizer.chat_template": "x" * (MAX_TEMPLATE + 1)}
    put(root, "model.gguf", model_files.gguf({**model_files.METADATA, **told}))
    _, (fault,) = contents(root)
    assert (fault.file, "has a chat template of 262145" in fault.problem) == ("model.gguf", True)


def template(text: str, file: str = "a.jinja", default: bool = True) -> Template:
    return Template(file, file, text, default)


def test_a_template_is_rendered_once_however_often_it_stands_there() -> None:
    asked: list[tuple[str, bool]] = []

    def render(text: str, must: bool) -> str | None:
        asked.append((text, must))
        return "is bad" if text == "evil" else None

    found = [template("good"), template("good", "b.jinja"), template("good", default=False)]
    assert check_templates(found, render) == []
    assert sorted(asked) == [("good", False), ("good", True)]
    faults = check_templates([template("evil"), template("evil", "b.jinja")], render)
    assert [str(each) for each in faults] == [
        "a.jinja has the chat template a.jinja, which is bad",
        "b.jinja has the chat template b.jinja, which is bad",
    ]


def test_a_flood_of_templates_is_not_rendered() -> None:
    def render(text: str, must: bool) -> str | None:
        raise AssertionError("was rendered")

    found = [template(str(number)) for number in range(MAX_TEMPLATES + 1)]
    (fault,) = check_templates(found, render)
    assert "at most 16 are used" in fault.problem


# Structure


@pytest.mark.parametrize("engine", ["llama.cpp", "vllm"])
def test_good_weights(tmp_path: Path, engine: str) -> None:
    root = write_bundle(tmp_path / "bundle", engine)
    assert check_structure(root, Bundle.read(root).manifest) == []


def test_a_damaged_gguf_file_is_named(tmp_path: Path) -> None:
    more = {"model.gguf": model_files.gguf(n_tensors=model_files.HUGE)}
    root = write_bundle(tmp_path / "bundle", more=more)
    (fault,) = check_structure(root, Bundle.read(root).manifest)
    assert fault.file == "model.gguf"
    assert fault.problem.startswith("is no usable GGUF file: it claims 9223372036854775808")


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    more = {"model.safetensors": model_files.safetensors(length=1 << 62)}
    root = write_bundle(tmp_path / "bundle", "vllm", more)
    (fault,) = check_structure(root, Bundle.read(root).manifest)
    assert fault.file == "model.safetensors"
    assert "says its header has" in fault.problem


def test_a_shard_that_no_index_names_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors"}}
    more = {"model.safetensors.index.json": index, "other.safetensors": b"anything"}
    write_bundle(root, "vllm", more)
    (fault,) = check_structure(root, Bundle.read(root).manifest)
    assert str(fault) == "of 2 *.safetensors files the model has 1"


def test_a_checkpoint_with_code_is_refused(tmp_path: Path) -> None:
    more = {"config.json": {**model_files.CONFIG, "auto_map": {"AutoModel": "evil.Model"}}}
    root = write_bundle(tmp_path / "bundle", "vllm", more)
    (fault,) = check_structure(root, Bundle.read(root).manifest)
    assert (fault.file, "auto_map" in fault.problem) == ("config.json", True)


# Bill of materials


def bill_of(root: Path, change: Any) -> list[str]:
    """The faults of a bundle whose bill of materials was changed."""
    document = json.loads((root / SBOM).read_text(encoding="utf-8"))
    other = change(document)
    put(root, SBOM, document if other is None else other)
    return [str(fault) for fault in check_sbom(root, Bundle.read(root).manifest)]


def test_the_bill_of_materials_of_a_whole_bundle_is_good(tmp_path: Path) -> None:
    for engine in ("llama.cpp", "vllm"):
        root = write_bundle(tmp_path / engine, engine)
        assert check_sbom(root, Bundle.read(root).manifest) == []


def _other_name(document: Any) -> None:
    document["metadata"]["component"]["name"] = "another"


def _other_digest(document: Any) -> None:
    document["metadata"]["component"]["components"][-1]["hashes"][0]["content"] = "0" * 64


def _other_weights(document: Any) -> None:
    document["metadata"]["component"]["hashes"][0]["content"] = "0" * 64


def _less_files(document: Any) -> None:
    document["metadata"]["component"]["components"] = document["metadata"]["component"][
        "components"
    ][:-1]


def _no_files(document: Any) -> None:
    document["metadata"]["component"]["components"] = 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: [], "is no CycloneDX document about a model"),
        (lambda document: {"bomFormat": "CycloneDX"}, "is no CycloneDX document"),
        (lambda document: {"bomFormat": "CycloneDX", "metadata": 3}, "is no CycloneDX document"),
        (_other_name, "is about another model, 'another'"),
        (_other_digest, "lists another content of tokenizer_config.json"),
        (_other_weights, "another digest than its weights have"),
        (_less_files, "does not list tokenizer_config.json"),
        (_no_files, "does not list model.gguf"),
    ],
)
def test_a_bill_of_something_else_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    found = bill_of(write_bundle(tmp_path / "bundle"), change)
    assert any(words in each for each in found), found
