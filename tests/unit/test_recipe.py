"""The recipe reader: what it takes, what it refuses, with which words and on which line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from guard import REPOSITORY
from hypothesis import example, given, strategies
from pydantic import ValidationError

from deployer.errors import Problem, RecipeError, UsageError
from deployer.recipe import Recipe, json_schema, override_recipe, read_recipe
from deployer.recipe.document import MAX_BYTES, MAX_DEPTH, MAX_NODES
from deployer.recipe.model import PATH_FIELDS
from deployer.recipe.quantization import GGUF_SCHEMES, NEED_IMATRIX

SHIPPED = sorted((REPOSITORY / "recipes").glob("*.yaml"))
SECONDS = 3.0
"""A reader needs less than one on a machine at rest."""
MINIMAL = """\
version: 1
name: tiny
source:
  package: some-model==1.0
quantization:
  method: gguf
  scheme: q4_0
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_recipe(content: str | bytes, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_recipe


@contextmanager
def quickly() -> Iterator[None]:
    started = time.process_time()
    yield
    assert time.process_time() - started < SECONDS


def problems_of(path: Path, *overrides: str) -> tuple[Problem, ...]:
    with quickly(), pytest.raises(RecipeError) as caught:
        read_recipe(path, overrides)
    error = caught.value
    assert error.exit_code == 2
    assert error.hint
    assert all(problem.message for problem in error.problems)
    return error.problems


def only_problem(path: Path, *overrides: str) -> Problem:
    (problem,) = problems_of(path, *overrides)
    return problem


# What is taken


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_read(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.stem


def test_recipes_ship() -> None:
    assert SHIPPED


def test_the_least_recipe_gets_the_documented_defaults(write: Write) -> None:
    recipe = read_recipe(write(MINIMAL))
    assert recipe.serve.host == "127.0.0.1"
    assert (recipe.serve.port, recipe.serve.context, recipe.serve.parallel) == (8080, 2048, 8)
    assert recipe.target.engine == "llama.cpp"
    assert recipe.quality.max_perplexity == 200.0
    assert recipe.loadtest.slo.max_error_rate == 0.0


def test_a_recipe_cannot_be_changed(write: Write) -> None:
    recipe = read_recipe(write(MINIMAL))
    with pytest.raises(ValidationError, match="frozen"):
        recipe.name = "other"  # type: ignore[misc]


def test_a_recipe_survives_the_manifest(write: Write) -> None:
    recipe = read_recipe(write(MINIMAL + 'serve: {extra_args: ["--flash-attn", "on"]}\n'))
    assert override_recipe(recipe.model_dump(mode="json"), ()) == recipe


def test_an_anchor_may_be_used_again(write: Write) -> None:
    text = MINIMAL.replace("name: tiny", "name: &name tiny") + "calibration: {text: *name}\n"
    path = write(text)
    (path.parent / "tiny").write_text("words", encoding="utf-8")
    assert read_recipe(path).calibration.text == str(path.parent / "tiny")


def test_a_byte_order_mark_and_windows_line_ends_are_taken(write: Write) -> None:
    assert read_recipe(write("\ufeff" + MINIMAL.replace("\n", "\r\n"))).name == "tiny"


def test_paths_of_the_file_are_relative_to_it(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(MINIMAL + "quality: {text: text.txt}\n")
    (path.parent / "text.txt").write_text("words", encoding="utf-8")
    monkeypatch.chdir("/")
    assert read_recipe(path).quality.text == str(path.parent / "text.txt")


def test_a_text_that_ships_is_named_by_its_language(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(MINIMAL + "quality: {text: zh}\ncalibration: {text: en}\n")
    monkeypatch.chdir(path.parent)
    taken = read_recipe(path)
    assert (taken.quality.text, taken.calibration.text) == ("zh", "en")
    assert override_recipe(taken.model_dump(mode="json"), ["quality.text=en"]).quality.text == "en"
    problem = only_problem(path, "quality.text=fr")
    assert problem.field == "quality.text" and str(path.parent / "fr") in problem.message


# Unknown keys, wrong types, all at once


@pytest.mark.parametrize(
    ("extra", "field", "line", "words"),
    [
        ("serv: {}\n", "serv", 8, "unknown key; did you mean serve?"),
        ("serve:\n  prt: 1\n", "serve.prt", 9, "unknown key; did you mean port?"),
        ("loadtest:\n  slo:\n    ttft_p95: 3\n", "loadtest.slo.ttft_p95", 10, "ttft_p95_ms?"),
        ("serve:\n  zzz: 1\n", "serve.zzz", 9, "known: server, host, port"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(
    write: Write, extra: str, field: str, line: int, words: str
) -> None:
    problem = only_problem(write(MINIMAL + extra))
    assert (problem.field, problem.line) == (field, line)
    assert problem.message.startswith("unknown key")
    assert words in problem.message


@pytest.mark.parametrize(
    ("old", "new", "field", "line", "words"),
    [
        ("version: 1", "version: 2", "version", 1, "2 is not 1"),
        ("version: 1", "version: '1'", "version", 1, "'1' is not"),
        ("name: tiny", "name: Tiny Model", "name", 2, "has not the form"),
        ("name: tiny", "name: [a]", "name", 2, "['a']"),
        ("name: tiny", "name:", "name", 2, "None"),
        ("scheme: q4_0", "scheme: q4_1_0", "quantization.scheme", 7, "did you mean q4_1?"),
        ("scheme: q4_0", "scheme: 4", "quantization.scheme", 7, "4 is not"),
        ("method: gguf", "method: gguff", "quantization.method", 6, "gguf"),
        ("source:\n  package: some-model==1.0", "source: x", "source", 3, "'x'"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(
    write: Write, old: str, new: str, field: str, line: int, words: str
) -> None:
    assert old in MINIMAL
    problem = only_problem(write(MINIMAL.replace(old, new)))
    assert (problem.field, problem.line) == (field, line)
    assert words in problem.message


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("serve", ["port: '80'", "port: 1.5", "port: true", "port: 65536", "port: -1"]),
        ("serve", ["parallel: 0", "context: 63", "threads: 0", "host: ''", "host: 'a b'"]),
        ("serve", ["host: '-x'", "extra_args: word", "extra_args: [1]", "ready_timeout: 0"]),
        ("quality", ["max_perplexity: .nan", "max_perplexity: .inf", "max_perplexity_ratio: 1"]),
        ("quality", ["tokens: 63", "tokens: 1e3", "text: 5", "text: ''"]),
        ("loadtest", ["users: 0", "duration: 0.5", "profile: fast", "slo: {ttft_p95_ms: 0}"]),
        ("loadtest", ["slo: {max_error_rate: 1.5}", "slo: []", "slo: {e2e_p95_ms: .inf}"]),
        ("calibration", ["samples: 0", "length: 1", "text: [a]"]),
        ("target", ["engine: vllm!", "device: gpu0"]),
    ],
)
def test_values_out_of_range_or_of_another_type_are_refused(
    write: Write, section: str, values: list[str]
) -> None:
    for value in values:
        problem = only_problem(write(f"{MINIMAL}{section}:\n  {value}\n"))
        assert problem.field.startswith(f"{section}.{value.split(':')[0]}"), value
        assert problem.line == 9, value


def test_every_problem_is_reported_at_once_in_order_of_line(write: Write) -> None:
    path = write("""\
version: 1
nmae: tiny
name: Tiny
source:
  package: some-model
  gguf: absent.gguf
quantization:
  method: gguf
  scheme: q4_0
  bits: 5
serve:
  port: "80"
  api_key_file: absent.key
""")
    found = [(problem.line, problem.field) for problem in problems_of(path)]
    assert found == [
        (2, "nmae"),
        (3, "name"),
        (5, "source.package"),
        (6, "source.gguf"),
        (10, "quantization.bits"),
        (12, "serve.port"),
        (13, "serve.api_key_file"),
    ]


def test_the_message_holds_every_problem_and_json_holds_them_one_by_one(write: Write) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(write(MINIMAL + "a: 1\nb: 2\n"))
    assert "has 2 problems:" in caught.value.message
    assert "line 8: a: unknown key" in caught.value.message
    listed = caught.value.as_json()["problems"]
    assert [problem["line"] for problem in listed] == [8, 9]  # type: ignore[attr-defined]
    json.dumps(caught.value.as_json())


@pytest.mark.parametrize(
    ("text", "missing"),
    [("version: 1\n", {"name", "source", "quantization"}), ("{}", {"version", "name"})],
)
def test_missing_fields_are_all_named(write: Write, text: str, missing: set[str]) -> None:
    found = {p.field for p in problems_of(write(text)) if p.message == "missing"}
    assert missing <= found


# Rules across fields


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{}", "exactly one"),
        ("{package: a==1, huggingface: a/b}", "huggingface, package"),
        ("{package: a==1, revision: main}", "revision belongs to huggingface"),
    ],
)
def test_exactly_one_source(write: Write, source: str, words: str) -> None:
    text = MINIMAL.replace("source:\n  package: some-model==1.0", f"source: {source}")
    assert words in only_problem(write(text)).message


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ("{method: gguf}", "scheme is missing"),
        ("{method: none, scheme: q4_0}", "method none has no scheme, not q4_0"),
        ("{method: none, imatrix: true}", "method none has no imatrix"),
        ("{method: none, tool: gguf}", "method none has no tool, not gguf"),
        ("{method: awq, scheme: q4_0}", "has the scheme w4a16, not q4_0"),
        ("{method: awq, sym: true, damp_percent: 0.1}", "method awq has no sym, damp_percent"),
        ("{method: gguf, scheme: q4_0, group_size: 64}", "method gguf has no group_size"),
        ("{method: gptq, tool: autoawq}", "tools llm-compressor, auto-gptq, not autoawq"),
        ("{method: gptq, bits: 4, scheme: w8a16}", "bits 4 does not agree with scheme w8a16"),
        ("{method: gptq, scheme: w8a8, group_size: 64}", "one scale per channel"),
        ("{method: gptq, group_size: 0}", "or -1 for a whole row"),
        ("{method: awq, clip: true}", "clip needs tool: autoawq"),
        ("{method: awq, tool: autoawq, zero_point: false}", "zero points only"),
        ("{method: gptq, tool: auto-gptq, scheme: w8a8}", "llm-compressor makes w8a8"),
        ("{method: bitsandbytes}", "nf4 or int8"),
        ("{scheme: q4_k_m, tool: gguf}", "makes q4_0 and q8_0"),
        ("{scheme: q4_0, tool: gguf, imatrix: true}", "cannot use an importance matrix"),
        ("{scheme: q4_0, mixed: {budget_bpw: 5}}", "leave scheme out"),
        ("{mixed: {budget_bpw: 5}, tool: gguf}", "mixed needs tool: llama-quantize"),
        ("{method: none, mixed: {budget_bpw: 5}}", "method none has no mixed"),
        ("{method: awq, tool: autoawq, mixed: {budget_bpw: 8}}", "needs tool: llm-compressor"),
        ("{method: gptq, scheme: w8a8, mixed: {budget_bpw: 12}}", "rounds activations"),
        ("{method: awq, mixed: {budget_bpw: 8, types: [q8_0]}}", "mixed.types belongs to gguf"),
        *(
            (f"{{scheme: {scheme}}}", "needs an importance matrix")
            for scheme in sorted(NEED_IMATRIX)
        ),
    ],
)
def test_quantization_is_consistent(write: Write, quantization: str, words: str) -> None:
    section = "quantization:\n  method: gguf\n  scheme: q4_0\n"
    assert section in MINIMAL
    text = MINIMAL.replace(section, f"quantization: {quantization}\n")
    problem = only_problem(write(text))
    assert problem.field == "quantization"
    assert words in problem.message


@pytest.mark.parametrize(
    ("method", "scheme", "knobs"),
    [
        (
            "{method: awq}",
            "w4a16",
            {"group_size": 128, "zero_point": True, "clip": False, "ignore": ("lm_head",),
             "offload": False},
        ),
        (
            "{method: gptq, bits: 8, group_size: 64, sym: false, ignore: [lm_head, 're:.*gate']}",
            "w8a16",
            {"group_size": 64, "sym": False, "desc_act": False, "damp_percent": 0.01,
             "ignore": ("lm_head", "re:.*gate"), "offload": False},
        ),
        (
            "{method: gptq, scheme: w8a8}",
            "w8a8",
            {"group_size": -1, "sym": True, "desc_act": False, "damp_percent": 0.01,
             "ignore": ("lm_head",), "offload": False},
        ),
        ("{method: bitsandbytes, scheme: nf4}", "nf4", {"double_quant": False}),
        ("{method: quanto, scheme: int2}", "int2", {}),
        ("{method: hqq, scheme: int3}", "int3", {"group_size": 64}),
        ("{method: torchao, scheme: int4, group_size: 32}", "int4", {"group_size": 32}),
        ("{method: torchao, scheme: int8}", "int8", {"group_size": -1}),
        ("{method: none}", None, {}),
    ],
)  # fmt: skip
def test_the_knobs_of_a_method_have_defaults(
    write: Write, method: str, scheme: str | None, knobs: dict[str, Any]
) -> None:
    section = "quantization:\n  method: gguf\n  scheme: q4_0\n"
    only = "quanto" in method or "hqq" in method or "torchao" in method
    target = f"target: {{engine: {'transformers' if only else 'vllm'}}}"
    text = MINIMAL.replace(section, f"quantization: {method}\n{target}\n")
    quantization = read_recipe(write(text)).quantization
    assert quantization.scheme == scheme
    assert quantization.knobs == knobs
    assert quantization.calibrated is (quantization.method in ("awq", "gptq"))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ("target: {engine: vllm}\n", "method gguf needs target.engine llama.cpp, not vllm"),
        ("serve: {server: vllm}\n", "engine llama.cpp has no serve.server vllm"),
        ("serve: {vllm: {eager: true}}\n", "serve.vllm needs target.engine vllm"),
    ],
)
def test_all_is_set_for_one_engine(write: Write, sections: str, words: str) -> None:
    assert words in only_problem(write(MINIMAL + sections)).message


def test_a_method_needs_an_engine_that_loads_its_weights(write: Write) -> None:
    section = "quantization:\n  method: gguf\n  scheme: q4_0\n"
    text = MINIMAL.replace(section, "quantization: {method: awq}\n")
    problem = only_problem(write(text))
    assert problem.message == ("quantization.method awq needs target.engine vllm, not llama.cpp")


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ("{text: recipe.yaml, dataset: a/b, file: c.txt}", "give one of text, chats, dataset"),
        ("{dataset: a/b}", "name the file"),
        ("{file: c.txt}", "belong together"),
        ("{revision: main}", "revision belongs to dataset"),
    ],
)
def test_there_is_one_calibration_set(write: Write, calibration: str, words: str) -> None:
    problems = problems_of(write(MINIMAL + f"calibration: {calibration}\n"))
    assert any(words in problem.message for problem in problems)


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        ("{text: en, dataset: a/b, file: c.txt}", "give one of text, dataset"),
        ("{dataset: a/b}", "name the file"),
        ("{file: c.txt}", "belong together"),
        ("{revision: main}", "revision belongs to dataset"),
        ("{dataset: nowhere, file: c.txt}", "form"),
    ],
)
def test_there_is_one_evaluation_text(write: Write, quality: str, words: str) -> None:
    problems = problems_of(write(MINIMAL + f"quality: {quality}\n"))
    assert any(words in problem.message for problem in problems)


def test_naming_another_text_replaces_the_one_of_the_file(write: Write) -> None:
    path = write(MINIMAL + "quality: {text: zh}\n")
    by_hub = ["quality.file=c.parquet", "quality.dataset=a/b", "quality.revision=v1"]
    quality = read_recipe(path, by_hub).quality
    assert (quality.text, quality.dataset, quality.file) == (None, "a/b", "c.parquet")
    assert quality.revision == "v1"
    taken = read_recipe(path, by_hub).model_dump(mode="json")
    quality = override_recipe(taken, ["quality.text=en"]).quality
    assert (quality.text, quality.dataset, quality.file, quality.revision) == ("en", *[None] * 3)


def test_adapters_are_found_beside_the_recipe(write: Write, tmp_path: Path) -> None:
    section = "quantization:\n  method: gguf\n  scheme: q4_0\n"
    text = MINIMAL.replace(section, "quantization: {method: none}\ntarget: {engine: vllm}\n")
    text += "serve: {vllm: {lora: [{name: a, path: adapter}]}}\n"
    path = write(text)
    assert "there is no folder" in only_problem(path).message
    (path.parent / "adapter").mkdir()
    (adapter,) = read_recipe(path).serve.vllm.lora
    assert adapter.path == str(path.parent / "adapter")


@pytest.mark.parametrize("scheme", sorted(set(GGUF_SCHEMES) - NEED_IMATRIX))
def test_every_scheme_can_be_asked_for(write: Write, scheme: str) -> None:
    recipe = read_recipe(write(MINIMAL), [f"quantization.scheme={scheme}"])
    assert recipe.quantization.scheme == scheme


@pytest.mark.parametrize(
    "value",
    ["a", "a/b/c", "../a/b", "-a/b", "a/-b", "a/b?x", "a b/c", "http://x/y", "a/b\n", "/a", "a/"],
)
def test_what_is_no_repository_is_refused(write: Write, value: str) -> None:
    source = f"source:\n  huggingface: {json.dumps(value)}"
    text = MINIMAL.replace("source:\n  package: some-model==1.0", source)
    assert only_problem(write(text)).field == "source.huggingface"


@pytest.mark.parametrize("value", ["a", "a>=1", "-r==1", "a==1 b", "a==--x", "a[b]==1", "a==1\n"])
def test_what_is_no_pinned_package_is_refused(write: Write, value: str) -> None:
    text = MINIMAL.replace("some-model==1.0", json.dumps(value))
    assert only_problem(write(text)).field == "source.package"


# YAML that is out to harm, or merely broken


def test_duplicate_keys_are_refused_with_both_lines(write: Write) -> None:
    problem = only_problem(write(MINIMAL + "serve:\n  port: 1\n  port: 2\n"))
    assert (problem.field, problem.line) == ("serve.port", 10)
    assert "first on line 9" in problem.message


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object:os.system",
        "!!python/object/apply:os.system",
        "!!python/name:os.system",
        "!!binary",
        "!!set",
        "!local",
    ],
)
def test_tags_are_refused_and_run_nothing(write: Write, tag: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = write(MINIMAL.replace("name: tiny", f"name: {tag} ['touch {canary}']"))
    assert all(problem.line == 2 for problem in problems_of(path))
    assert not canary.exists()


def test_an_alias_bomb_is_refused(write: Write) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    problem = only_problem(write("\n".join(lines)))
    assert "more than" in problem.message
    assert problem.line is not None


@pytest.mark.parametrize(
    "text", ["a: &a [*a]", "a: &a {b: *a}", "&a [*a]", "a: &a\n  - b: {c: *a}"]
)
def test_an_alias_of_itself_is_refused(write: Write, text: str) -> None:
    assert "contains itself" in only_problem(write(text)).message


def test_merge_keys_are_refused(write: Write) -> None:
    text = MINIMAL.replace("source:", "source: &s") + "serve:\n  <<: *s\n"
    problem = only_problem(write(text))
    assert (problem.field, problem.line) == ("serve", 9)


def test_keys_that_are_no_words_are_refused(write: Write) -> None:
    assert "plain words" in only_problem(write(MINIMAL + "? [a, b]\n: 1\n")).message


@pytest.mark.parametrize("bracket", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused(write: Write, bracket: str) -> None:
    problem = only_problem(
        write(("" if bracket == "- " else "a: ") + bracket * (MAX_BYTES // 4 - 4))
    )
    assert f"{MAX_DEPTH} levels" in problem.message
    assert problem.line == 1


def test_too_many_values_are_refused(write: Write) -> None:
    problem = only_problem(write("a: [" + "1," * (MAX_NODES + 1) + "]"))
    assert f"more than {MAX_NODES}" in problem.message


def test_a_hundred_megabytes_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    with path.open("wb") as stream:
        stream.write(MINIMAL.encode())
        stream.truncate(100_000_000)
    assert f"{MAX_BYTES // 1024} KiB" in only_problem(path).message


def test_a_file_of_one_long_line_is_answered(write: Write) -> None:
    assert problems_of(write("a" * MAX_BYTES))


def test_nul_is_refused_with_its_line(write: Write) -> None:
    assert only_problem(write(b"version: 1\nname: a\x00b\n")).line == 2


def test_an_escaped_nul_in_a_path_is_refused(write: Write) -> None:
    problem = only_problem(write(MINIMAL + 'quality: {text: "a\\0b"}\n'))
    assert problem.field == "quality.text"


def test_text_that_is_not_utf8_is_refused_with_its_line(write: Write) -> None:
    problem = only_problem(write(b"version: 1\nname: caf\xe9\n"))
    assert (problem.line, problem.message) == (2, "not UTF-8 text")


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "\ta: 1", "a: 'x", "a: *nothing", "%BAD", "---\na: 1\n---\nb: 2\n"]
)
def test_broken_yaml_is_refused_with_a_line(write: Write, text: str) -> None:
    problem = only_problem(write(text))
    assert problem.line is not None
    assert "YAML" in problem.message


@pytest.mark.parametrize("text", ["", "# nothing\n", "word", "- a\n", "3", "null"])
def test_what_is_no_mapping_is_refused(write: Write, text: str) -> None:
    assert "mapping" in only_problem(write(text)).message


def test_values_yaml_cannot_make_are_refused(write: Write) -> None:
    problem = only_problem(write(MINIMAL + f"serve: {{port: {'9' * 5000}}}\n"))
    assert problem.field == "serve.port"


def test_a_date_stays_a_word(write: Write) -> None:
    assert read_recipe(write(MINIMAL.replace("tiny", "2026-11-22"))).name == "2026-11-22"


@pytest.mark.parametrize("value", ["--help", "-x", "--rpc=evil:1"])
@pytest.mark.parametrize("field", ["source.path", "quality.text", "serve.host"])
def test_a_value_that_begins_like_an_option_never_stays_one(
    write: Write, field: str, value: str
) -> None:
    """A path becomes absolute, so that no program can take it for an option; a host is refused."""
    section, name = field.split(".")
    text = MINIMAL.replace("source:\n  package: some-model==1.0", "source: {gguf: recipe.yaml}")
    if section == "source":
        text = MINIMAL.replace("package: some-model==1.0", f"path: '{value}'")
    else:
        text += f"{section}: {{{name}: '{value}'}}\n"
    problem = only_problem(write(text))
    assert problem.field == field
    assert f" {value}" not in problem.message or section == "serve"


# Files


@pytest.mark.parametrize(("section", "name"), PATH_FIELDS)
def test_a_missing_file_is_named_with_its_line(write: Write, section: str, name: str) -> None:
    line = 4 if section == "source" else 9
    text = MINIMAL.replace("package: some-model==1.0", f"{name}: absent")
    if section != "source":
        text = MINIMAL + f"{section}:\n  {name}: absent\n"
    problem = only_problem(write(text))
    assert (problem.field, problem.line) == (f"{section}.{name}", line)
    assert problem.message.startswith("there is no f")
    assert "absent" in problem.message


def test_a_folder_is_no_file_and_a_file_no_folder(write: Write, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    text = MINIMAL.replace("package: some-model==1.0", "gguf: folder")
    assert "no file" in only_problem(write(text)).message
    text = MINIMAL.replace("package: some-model==1.0", "path: recipe.yaml")
    assert "no folder" in only_problem(write(text)).message


def test_a_home_of_nobody_is_no_crash(write: Write) -> None:
    text = MINIMAL.replace("package: some-model==1.0", "gguf: ~no-such-user-at-all/x.gguf")
    assert only_problem(write(text)).field == "source.gguf"


def test_a_missing_recipe_a_folder_and_a_locked_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no recipe") as caught:
        read_recipe(tmp_path / "absent.yaml")
    assert caught.value.hint
    with pytest.raises(UsageError, match="is a folder"):
        read_recipe(tmp_path)
    with pytest.raises(UsageError):
        read_recipe(tmp_path / "absent.yaml" / "below")
    if os.geteuid() != 0:
        locked = tmp_path / "locked.yaml"
        locked.touch(mode=0)
        with pytest.raises(UsageError, match="cannot read"):
            read_recipe(locked)


# Overrides


def test_overrides_have_yaml_types(write: Write) -> None:
    recipe = read_recipe(
        write(MINIMAL),
        [
            "serve.port=9000",
            "quality.max_perplexity=50.5",
            "quantization.imatrix=true",
            "serve.extra_args=[--no-mmap]",
            "loadtest.slo.ttft_p95_ms=100.0",
            "name=other",
        ],
    )
    assert recipe.serve.port == 9000
    assert recipe.serve.extra_args == ("--no-mmap",)
    assert recipe.quantization.imatrix is True
    assert recipe.loadtest.slo.ttft_p95_ms == 100.0
    assert recipe.name == "other"


def test_the_last_override_wins(write: Write) -> None:
    recipe = read_recipe(write(MINIMAL), ["serve.port=1", "serve.port=2"])
    assert recipe.serve.port == 2


def test_an_override_may_hold_an_equals_sign(write: Write) -> None:
    recipe = read_recipe(write(MINIMAL), ["serve.extra_args=[--key=value]"])
    assert recipe.serve.extra_args == ("--key=value",)


def test_naming_another_source_replaces_the_files(write: Write) -> None:
    recipe = read_recipe(write(MINIMAL), ["source.huggingface=some/model", "source.revision=main"])
    assert recipe.source.huggingface == "some/model"
    assert recipe.source.package is None


def test_paths_of_overrides_are_relative_to_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "text.txt").write_text("words", encoding="utf-8")
    monkeypatch.chdir(here)
    recipe = read_recipe(write(MINIMAL), ["quality.text=text.txt"])
    assert recipe.quality.text == str(here / "text.txt")


@pytest.mark.parametrize("override", ["serve.port", "=1", "serve..port=1", ".a=1", "a.=1", ""])
def test_an_override_of_another_form_is_a_usage_error(write: Write, override: str) -> None:
    with pytest.raises(UsageError, match="FIELD=VALUE"):
        read_recipe(write(MINIMAL), [override])


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("serve.prt=1", "serve.prt"),
        ("serve.port=many", "serve.port"),
        ("name.first=x", "name"),
        ("version=2", "version"),
        ("serve=", "serve"),
        ("serve.port={", "serve.port"),
        ("quantization.scheme=!!python/object:x", "quantization.scheme"),
    ],
)
def test_a_wrong_override_is_a_problem_of_its_field(
    write: Write, override: str, field: str
) -> None:
    assert field in {problem.field for problem in problems_of(write(MINIMAL), override)}


def test_an_override_mends_a_broken_field(write: Write) -> None:
    assert read_recipe(write(MINIMAL + "serve: {port: x}\n"), ["serve.port=1"]).serve.port == 1


def test_only_the_serve_files_of_a_sealed_recipe_must_exist(write: Write) -> None:
    sealed = read_recipe(write(MINIMAL)).model_dump(mode="json")
    sealed["quality"]["text"] = "/gone/since"
    assert override_recipe(sealed, ["serve.port=1"]).serve.port == 1
    with pytest.raises(RecipeError, match="there is no file"):
        override_recipe(sealed, ["serve.api_key_file=/gone/too"])


# The schema for editors


def test_the_shipped_schema_is_the_models() -> None:
    shipped = REPOSITORY / "recipes" / "recipe.schema.json"
    assert json.loads(shipped.read_text(encoding="utf-8")) == json_schema(), (
        "renew it: .venv/bin/deployer schema > recipes/recipe.schema.json"
    )


def test_every_shipped_recipe_obeys_the_shipped_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    wrong = {
        path.stem: [error.message for error in found]
        for path in SHIPPED
        if (found := list(validator.iter_errors(yaml.safe_load(path.read_text("utf-8")))))
    }
    assert SHIPPED and wrong == {}


def test_every_field_is_described() -> None:
    schema = json_schema()
    for section in [schema, *schema["$defs"].values()]:
        for name, field in section["properties"].items():
            assert field.get("description") or "$ref" in field or name == "version", name


# Anything at all


def read_anything(path: Path, overrides: tuple[str, ...] = ()) -> None:
    try:
        recipe = read_recipe(path, overrides)
    except (RecipeError, UsageError) as error:
        json.dumps(error.as_json())
    else:
        assert isinstance(recipe, Recipe)


@given(strategies.binary(max_size=400) | strategies.text(max_size=400).map(lambda t: t.encode()))
@example(b"? !!timestamp x\n: 1")
@example(b"a: !!int ''")
@example(b"a: !!float x")
@example(b"a: !!bool x")
@example(b"a: !!null x")
@example(b"a: 2026-99-99")
@example(b"a: =")
@example(b"a: 1:2:3")
@example(b"a: 0x")
@example(b"a: 0b_")
@example(b"a: ._")
@example(b"\xff\xfe\x00")
@example(b"version: !!timestamp 1\nname: 2026-13-45")
@example(b'a: "\\ud800"')
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    read_anything(path)


SNIPPETS = (
    "&a", "*a", "<<: *a", "!!python/object:x", "!!int", "[", "]", "{", "}", ":", "- ", "\t", "\x00",
    "'", '"', "|", ">", "%", "@", "---", "...", "\\", "#", "é", "\ud7ff", "0x", ".inf", ".nan", "~",
    "null", "true", "=", "1e999", "9" * 400, "2026-13-45", "\u2028", "\ufeff", '"\\ud800"',
)  # fmt: skip


@strategies.composite
def mutated(draw: strategies.DrawFn) -> str:
    """A real recipe with some of its text cut out, doubled or replaced."""
    text = draw(strategies.sampled_from([MINIMAL, *(p.read_text("utf-8") for p in SHIPPED)]))
    for _ in range(draw(strategies.integers(1, 6))):
        begin = draw(strategies.integers(0, len(text)))
        end = min(len(text), begin + draw(strategies.integers(0, 12)))
        piece = draw(
            strategies.sampled_from(SNIPPETS) | strategies.just(text[begin:end] * 2)
            | strategies.text(max_size=4)
        )  # fmt: skip
        text = text[:begin] + piece + text[end:]
    return text


@given(mutated())
def test_any_mutated_recipe_is_read_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mutated.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    read_anything(path)


@given(strategies.text(max_size=60), strategies.sampled_from(["", "serve.", "source.", "a.b.c."]))
@example("port=!!python/object:os.system x", "serve.")
@example("port=&a [*a]", "serve.")
@example("port=" + "[" * 3000, "serve.")
@example("path=\x00", "source.")
@example("path=~nobody-here", "source.")
@example("gguf=" + "x" * 5000, "source.")
@example("port=2026-99-99", "serve.")
@example("port=" + "9" * 5000, "serve.")
@example("port={[a]: b}", "serve.")
@example("port={1: b}", "serve.")
@example("port=!!binary '%'", "serve.")
@example("port=.nan", "serve.")
@example('port="\\ud800"', "serve.")
def test_any_override_is_taken_or_refused(tmp_path: Path, text: str, section: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    read_anything(path, (section + text,))


@given(
    strategies.recursive(
        strategies.none()
        | strategies.booleans()
        | strategies.integers()
        | strategies.floats()
        | strategies.text(max_size=8),
        lambda inner: (
            strategies.lists(inner, max_size=3)
            | strategies.dictionaries(strategies.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    strategies.sampled_from(sorted(Recipe.model_fields)),
)
def test_any_value_in_a_section_is_taken_or_refused(
    tmp_path: Path, value: object, section: str
) -> None:  # fmt: skip
    path = tmp_path / "recipe.yaml"
    data = {**yaml.safe_load(MINIMAL), section: value}
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    read_anything(path)


def test_a_sealed_recipe_of_an_older_release_can_still_be_served() -> None:
    sealed = override_recipe(MINIMAL_SEALED, ()).model_dump(mode="json")
    sealed["quality"]["tokens"] = 256
    sealed["serve"]["vllm"]["forgotten"] = 1
    sealed["left_out"] = {}
    assert override_recipe(sealed, ["serve.port=9000"]).serve.port == 9000
    with pytest.raises(RecipeError, match=r"quality\.tokens"):
        override_recipe(sealed, ["quality.tokens=9"])


MINIMAL_SEALED: dict[str, Any] = {
    "version": 1, "name": "tiny", "source": {"package": "some-model==1.0"},
    "quantization": {"method": "gguf", "scheme": "q4_0"},
}  # fmt: skip
