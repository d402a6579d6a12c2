"""Digests, file lists and manifests."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from deployer import artifacts
from deployer.artifacts import (
    FOLDER,
    MANIFEST,
    Bundle,
    Digests,
    FileEntry,
    Manifest,
    content_digest,
    file_digest,
    json_digest,
    list_files,
)
from deployer.errors import StoreError


def manifest(**changes: Any) -> Manifest:
    facts: dict[str, Any] = {
        "name": "tiny", "digest": "d", "engine": "llama.cpp", "weights": "model.gguf",
        "size_bytes": 3, "bits_per_weight": 4.5, "files": (), "recipe": {}, "serve": {},
        "source": {}, "quantization": {}, "quality": {}, "parity": {}, "tools": {},
        "created_by": "test",
    }  # fmt: skip
    return Manifest(**{**facts, **changes})


OTHER: dict[str, Any] = {
    **dict.fromkeys(("name", "digest", "engine", "weights", "created_by", "seal"), "another"),
    **{
        name: {"another": "1"}
        for name in ("recipe", "plan", "serve", "source", "calibration", "quantization", "quality",
                     "parity", "tools", "observed")
    },
    "manifest_version": 9, "size_bytes": 9, "bits_per_weight": 9.0, "launch": ({"another": 1},),
    "files": (FileEntry(path="another", size=1, sha256="0"),),
}  # fmt: skip
"""Another value for each field."""


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
    written = manifest(quality={"nats": 1e-05, "n": 10**17, "words": "\u2028 é"}).sealed()
    (tmp_path / MANIFEST).write_text(written.text(), encoding="utf-8")
    bundle = Bundle.read(tmp_path)
    assert bundle.manifest == written
    assert bundle.manifest.text() == written.text()
    assert bundle.weights == tmp_path / "model.gguf"


def test_a_digest_is_of_all_but_what_may_differ() -> None:
    one = manifest(observed={"seconds": {"quantize": 1.5}}).sealed()
    other = manifest(observed={"seconds": {"quantize": 7.1}, "machine": "another"}).sealed()
    assert one.digest == other.digest == one.true_digest()
    assert one.seal != other.seal
    for field in Manifest.model_fields:
        changed = one.model_copy(update={field: OTHER[field]})
        same = field in ("digest", "seal", "observed")
        assert (changed.true_digest() == one.digest) is same, field


def test_a_seal_is_of_every_byte() -> None:
    """Also of the order in which keys stand, which the digest does not know."""
    one = manifest(recipe={"a": 1, "b": 2}).sealed()
    other = manifest(recipe={"b": 2, "a": 1}).sealed()
    assert (one.digest, one.seal == other.seal) == (other.digest, False)
    for field in Manifest.model_fields:
        changed = one.model_copy(update={field: OTHER[field]})
        assert (changed.true_seal() == one.seal) is (field == "seal"), field


def test_a_digest_can_be_computed_without_deployer() -> None:
    """As docs/bundle.md has it."""
    sealed = manifest(quality={"nats": 1e-05, "words": "é"}, observed={"a": 1}).sealed()
    document = json.loads(sealed.text())
    for name in ("digest", "seal", "observed"):
        document.pop(name)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == sealed.digest


def test_a_seal_can_be_checked_without_deployer() -> None:
    sealed = manifest().sealed()
    emptied = re.sub('"seal": "[0-9a-f]*"', '"seal": ""', sealed.text())
    assert hashlib.sha256(emptied.encode()).hexdigest() == sealed.seal


@pytest.mark.parametrize(("version", "words"), [(1, "an older deployer"), (3, "a newer deployer")])
def test_a_manifest_of_another_version_says_so(tmp_path: Path, version: int, words: str) -> None:
    text = f'{{"manifest_version": {version}, "name": "tiny", "digest": "d"}}'
    (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match=words) as caught:
        Bundle.read(tmp_path)
    assert caught.value.hint.startswith("Build it again")


def test_weights_and_licence_are_found_among_the_files() -> None:
    names = ("LICENSE", "LICENSE.md", "NOTICE", "a.safetensors", "b.safetensors", "model.gguf")
    files = tuple(FileEntry(path=name, size=5, sha256="0" * 64) for name in names)
    assert manifest(files=files).weights_bytes == 5
    assert manifest(files=files, weights=FOLDER).weights_bytes == 10
    assert manifest(files=files).licence_files == ("LICENSE", "LICENSE.md")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"name": 3}', '{"manifest_version": 2}', "\udcff"]
)
def test_what_is_no_manifest_is_a_value_error(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError):
        Bundle.read(tmp_path)
