"""Digests, file lists and manifests."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from deployer import artifacts
from deployer.artifacts import (
    MANIFEST,
    Bundle,
    Digests,
    Manifest,
    content_digest,
    file_digest,
    json_digest,
    list_files,
)


def manifest(**changes: Any) -> Manifest:
    facts: dict[str, Any] = {
        "name": "tiny", "digest": "d", "engine": "llama.cpp", "weights": "model.gguf",
        "size_bytes": 3, "bits_per_weight": 4.5, "files": (), "recipe": {}, "serve": {},
        "source": {}, "quantization": {}, "quality": {}, "parity": {}, "tools": {},
        "created_by": "test",
    }  # fmt: skip
    return Manifest(**{**facts, **changes})


def test_a_files_digest_is_its_sha256(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    assert file_digest(path) == hashlib.sha256(b"x" * 100_000).hexdigest()


def test_a_file_and_its_links_are_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def count(path: Path) -> str:
        hashed.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(artifacts, "file_digest", count)
    digests = Digests()
    path, link, copy = (tmp_path / name for name in ("file", "link", "copy"))
    path.write_bytes(b"x" * 1000)
    os.link(path, link)
    shutil.copyfile(path, copy)
    assert digests(path) == digests(link) == digests(copy) == digests(path)
    assert hashed == ["file", "copy"]
    path.write_bytes(b"y" * 1000)
    os.utime(path, (5, 5))
    assert digests(path) == file_digest(path) != digests(copy)


def test_a_json_digest_knows_no_order_of_keys() -> None:
    assert json_digest({"a": 1, "b": [1, 2]}) == json_digest({"b": [1, 2], "a": 1})
    assert json_digest([1, 2]) != json_digest([2, 1])
    assert json_digest({"a": 1}) != json_digest({"a": "1"})
    assert json_digest("é") == json_digest("\u00e9")


def test_files_are_listed_sorted_with_their_hashes(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_text("1", encoding="utf-8")
    (tmp_path / "a").write_text("22", encoding="utf-8")
    files = list_files(tmp_path)
    assert [(entry.path, entry.size) for entry in files] == [("a", 2), ("b/x", 1)]
    assert files[0].sha256 == hashlib.sha256(b"22").hexdigest()


def test_a_content_digest_is_of_names_and_content_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("22", encoding="utf-8")
    before = content_digest(list_files(tmp_path))
    os.utime(path, (1, 1))
    assert content_digest(list_files(tmp_path)) == before
    path.rename(tmp_path / "b")
    assert content_digest(list_files(tmp_path)) != before


def test_a_bundle_is_read_back(tmp_path: Path) -> None:
    written = manifest()
    (tmp_path / MANIFEST).write_text(written.model_dump_json(), encoding="utf-8")
    bundle = Bundle.read(tmp_path)
    assert bundle.manifest == written
    assert bundle.weights == tmp_path / "model.gguf"


def test_a_manifest_of_a_later_version_may_say_more(tmp_path: Path) -> None:
    text = manifest().model_dump_json().replace("{", '{"new_field": 1,', 1)
    (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
    assert Bundle.read(tmp_path).manifest.name == "tiny"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": 3}', "\udcff"])
def test_what_is_no_manifest_is_a_value_error(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError):
        Bundle.read(tmp_path)
