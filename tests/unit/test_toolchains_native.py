"""How llama.cpp is compiled: what cmake is told, which files are joined, and what is kept."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest

from deployer.progress import SILENT
from deployer.toolchains import native
from deployer.toolchains.specs import SPECS, Host, spec_named

LINUX = Host("Linux", "x86_64", "3.11", cpu="avx2 fma")
SPEC = spec_named("llama-cpp-native")


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """The commands of a build in `tmp_path`, none of them run."""
    given = []

    def pretend(command, **_):
        given.append(command)
        (tmp_path / "build" / "bin").mkdir(parents=True, exist_ok=True)
        return 0

    monkeypatch.setattr(native.process, "run", pretend)
    monkeypatch.setattr(
        native.sources, "unpack", lambda archive, within, parts, target: target.mkdir()
    )
    with SILENT.step("build") as step:
        native.build(tmp_path / "archive.tar.gz", SPEC, tmp_path, step, tmp_path / "log")
    return given


def test_cmake_reads_the_file_that_joins_sources(commands):
    configure, compile_all = commands
    (setting,) = [word for word in configure if word.startswith("-DCMAKE_PROJECT_")]
    assert setting == f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={SPEC.joined}"
    assert SPEC.joined.is_file()
    assert set(SPEC.cmake) < set(configure)
    assert compile_all[-len(SPEC.targets) :] == list(SPEC.targets)


def test_only_what_was_made_is_kept(commands, tmp_path):
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def joined():
    """(target, group, patterns) of each group."""
    text = SPEC.joined.read_text(encoding="utf-8")
    body = re.search(r"function\(join_all\)(.*?)endfunction", text, re.DOTALL)[1]
    body = re.sub(r"#.*", "", body)
    calls = [call.split() for call in re.findall(r"join\(([^)]*)\)", body)]
    return [(target, group, files) for target, group, *files in calls]


def test_what_computes_is_compiled_as_llama_cpp_does_it():
    assert {target for target, _, _ in joined()} == {
        "llama", "llama-common", "mtmd", "server-context", "llama-server-impl",
    }  # fmt: skip
    text = SPEC.joined.read_text(encoding="utf-8")
    assert not re.search(r"compile_options|COMPILE_FLAGS|CMAKE_C(XX)?_FLAGS|definitions", text)


def test_a_file_stands_in_one_group_and_a_group_in_one_call():
    groups = Counter((target, group) for target, group, _ in joined())
    files = Counter((target, file) for target, _, files in joined() for file in files)
    assert set(groups.values()) == set(files.values()) == {1}


def test_the_joined_files_are_part_of_this_key_and_of_no_other(tmp_path):
    changed = tmp_path / "joined.cmake"
    changed.write_text("# nothing is joined\n", encoding="utf-8")
    assert dataclasses.replace(SPEC, joined=changed).key(LINUX) != SPEC.key(LINUX)
    assert [spec.name for spec in SPECS.values() if spec.joined] == [SPEC.name]
