"""What a manifest may list: plain names, sane numbers, and the kinds of files a bundle holds."""

from __future__ import annotations

from typing import Any

import made_up_bundle
import pytest

from deployer.artifacts import FileEntry, Manifest
from deployer.verification.listing import MAX_FILES, check_listing, is_plain

SHA = "0" * 64


def listing(*names: str, **changes: Any) -> Manifest:
    """A manifest that lists what it must and `names`, all of them empty."""
    wanted = ("bom.cdx.json", "model.gguf", *names)
    files = tuple(FileEntry(path=name, size=0, sha256=SHA) for name in wanted)
    return made_up_bundle.manifest(**{"files": files, "size_bytes": 0, **changes})


def problems(manifest: Manifest) -> list[str]:
    return [str(fault) for fault in check_listing(manifest)]


@pytest.mark.parametrize("engine", ["llama.cpp", "vllm", "transformers"])
def test_a_usual_list_is_good(engine: str) -> None:
    assert check_listing(made_up_bundle.manifest(engine)) == []


@pytest.mark.parametrize(
    "name",
    ["LICENSE", "LICENSE.txt", "COPYING", "NOTICE", "merges.txt", "tokenizer.model", "q.tiktoken",
     "SHA256SUMS", "chat_template.jinja", "mmproj.gguf", "说明.txt", "a b.txt"],
)  # fmt: skip
def test_files_of_a_bundle(name: str) -> None:
    assert problems(listing(name)) == []


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x.json", "/etc/x.json", "a/b.json", "a\\b.json", ".hidden.json", "a\0.json",
     "a\n.json", "a\u202ejson.txt", "x" * 251 + ".json"],
)  # fmt: skip
def test_a_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    assert not is_plain(name)
    assert any("is no plain file name" in each for each in problems(listing(name)))


def test_a_name_that_is_no_text_is_refused() -> None:
    assert not is_plain("\ud800.json")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "can run code when it is loaded"),
        ("model.PKL", "can run code when it is loaded"),
        ("weights.npy", "can run code when it is loaded"),
        ("modeling_llama.py", "is program code"),
        ("LICENSE.py", "is program code"),
        ("libevil.so", "is program code"),
        ("NOTICE.sh", "is program code"),
        ("more.zip", "is an archive"),
        ("LICENSE.tar", "is an archive"),
        ("model.onnx", "of a kind that a bundle does not hold"),
        ("data.yaml", "of a kind that a bundle does not hold"),
    ],
)
def test_what_a_bundle_does_not_hold_is_refused(name: str, words: str) -> None:
    (problem,) = problems(listing(name))
    assert problem.startswith(f"{name} ")
    assert words in problem


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.json", "a.json"),
        ("LICENSE-a", "LICENSE-A"),
        ("é.txt", "e\u0301.txt"),
        ("ﬁ.txt", "fi.txt"),
    ],
)
def test_names_that_are_one_file_on_some_disks_are_refused(first: str, second: str) -> None:
    (problem,) = problems(listing(first, second))
    assert f"is listed beside {first}" in problem


@pytest.mark.parametrize("name", ["Manifest.JSON", "MODEL.gguf"])
def test_a_name_may_not_stand_for_one_of_ours(name: str) -> None:
    assert any("on some disks they are one file" in each for each in problems(listing(name)))


@pytest.mark.parametrize("name", ["manifest.json", "model.sig"])
def test_a_manifest_cannot_list_itself_or_its_signature(name: str) -> None:
    assert any("cannot hold the digest" in each for each in problems(listing(name)))


@pytest.mark.parametrize("size", [-1, 1 << 51, 10**400])
def test_an_impossible_size_is_refused(size: int) -> None:
    files = (FileEntry(path="a.json", size=size, sha256=SHA),)
    found = problems(listing(files=(*listing().files, *files), size_bytes=size))
    assert any("impossible size" in each for each in found)


@pytest.mark.parametrize("digest", ["", "0" * 63, "F" * 64, "g" * 64, "0" * 64 + "\n"])
def test_a_digest_has_one_spelling(digest: str) -> None:
    files = (FileEntry(path="a.json", size=0, sha256=digest),)
    (problem,) = problems(listing(files=(*listing().files, *files)))
    assert "without a SHA-256 digest" in problem


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size_bytes": 7}, "says that the files have 7 bytes; they add up to 0"),
        ({"weights": "other.gguf"}, "names the weights 'other.gguf'"),
        ({"weights": "bom.cdx.json"}, "are no GGUF file of its list"),
        ({"weights": "../model.gguf"}, "are no GGUF file of its list"),
        ({"weights": "."}, "lists no *.safetensors weights"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    (problem,) = problems(listing(**changes))
    assert words in problem


def test_weights_are_of_one_kind() -> None:
    (problem,) = problems(listing("model.safetensors"))
    assert "lists *.safetensors beside GGUF weights" in problem


def test_a_bill_of_materials_belongs_to_it() -> None:
    files = tuple(each for each in listing().files if each.path != "bom.cdx.json")
    (problem,) = problems(listing(files=files))
    assert "lists no bill of materials" in problem


def test_a_flood_of_files_is_refused_at_once() -> None:
    names = [f"{number}.txt" for number in range(MAX_FILES)]
    (problem,) = problems(listing(*names))
    assert f"a bundle has at most {MAX_FILES}" in problem
