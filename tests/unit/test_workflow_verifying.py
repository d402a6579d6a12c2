"""Verify, demand, sign: what is said of a bundle, and what the library is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bundle_files import KEY, digests_of, put, seal, signature_text, statement, write_bundle
from click.testing import CliRunner

from deployer.artifacts import SIGNATURE, Bundle
from deployer.cli import verifying as commands
from deployer.errors import BundleError, StageError, UsageError
from deployer.home import Home
from deployer.progress import SILENT, Silent
from deployer.verification import Check
from deployer.workflow import verifying


class Library:
    """Stands for the toolchain of model-signing; `asked` lists what the workers were given."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.bad: str | None = None
        self.error: StageError | None = None
        self.change: Any = lambda value: value

    def run(
        self, toolchain: str, worker: str, request: Mapping[str, Any], *, log_path: Path
    ) -> dict[str, Any]:
        assert toolchain == "the toolchain model-signing"
        self.asked.append((worker, request))
        if self.error:
            raise self.error
        if worker == "verify_signature":
            return {"bad": self.bad}
        return {"signature": signature_text(self.change(statement(request["digests"]))).decode()}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(verifying, "ensure", lambda name, *_: f"the toolchain {name}")
    monkeypatch.setattr(verifying, "run_worker", made.run)
    monkeypatch.setattr(verifying, "Check", partial(Check, render=lambda text, must: None))
    return made


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("DEPLOYER_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    path.write_text("a key", encoding="utf-8")
    path.chmod(0o600)
    return path


def test_a_good_bundle(root: Path, home: Home, library: Library) -> None:
    found = verifying.verify(root, home, SILENT)
    assert found.ok
    manifest = Bundle.read(root).manifest
    assert found.as_json() == {
        "ok": True,
        "bundle": str(root),
        "digest": manifest.digest,
        "signature": {"state": "none", "key": None},
        "problems": [],
        "checked": {"files": len(manifest.files), "bytes": manifest.size_bytes},
    }
    assert found.describe()[0].startswith("demo-q4_0: good (")
    assert found.describe()[-1] == "Signature: none"
    assert library.asked == []


def test_a_damaged_bundle(root: Path, home: Home, library: Library) -> None:
    put(root, "LICENSE", "Other.\n\n")
    put(root, "x.py", "")
    found = verifying.verify(str(root), home, SILENT)
    assert not found.ok
    assert found.as_json()["problems"] == [
        {"file": "x.py", "problem": "is not listed in the manifest"},
        {"file": "LICENSE", "problem": "has 8 bytes; the manifest says 9"},
    ]
    assert found.describe()[0].startswith("demo-q4_0: 2 problems (")
    assert "  x.py is not listed in the manifest" in found.describe()


def test_a_folder_without_a_manifest_is_a_bundle_with_a_problem(
    tmp_path: Path, home: Home, library: Library
) -> None:
    (tmp_path / "empty").mkdir()
    found = verifying.verify(tmp_path / "empty", home, SILENT)
    assert [str(each) for each in found.checked.faults] == ["manifest.json is missing"]
    assert found.as_json()["digest"] is None
    assert found.describe()[0].startswith("empty: 1 problem (0 files")


def test_what_is_not_there_is_a_usage_error(home: Home, library: Library, root: Path) -> None:
    with pytest.raises(UsageError, match="no bundle 'nothing'"):
        verifying.verify("nothing", home, SILENT)
    with pytest.raises(UsageError, match="there is no key"):
        verifying.verify(root, home, SILENT, key=root / "absent.pem")


def test_a_key_is_handed_to_the_library(
    root: Path, home: Home, library: Library, key: Path
) -> None:
    put(root, SIGNATURE, signature_text(statement(digests_of(root))))
    found = verifying.verify(root, home, SILENT, key=key)
    assert found.ok
    assert found.as_json()["signature"] == {"state": "good", "key": KEY}
    assert found.describe()[-1] == f"Signature: good, by the key {KEY[:16]}…"
    ((worker, request),) = library.asked
    assert worker == "verify_signature"
    assert request["key"] == str(key)
    assert request["digests"] == digests_of(root)
    assert request["signature"].encode() == (root / SIGNATURE).read_bytes()


def test_without_a_key_a_signature_is_only_told_of(
    root: Path, home: Home, library: Library
) -> None:
    put(root, SIGNATURE, signature_text(statement(digests_of(root))))
    found = verifying.verify(root, home, SILENT)
    assert found.ok
    assert found.describe()[-1].endswith("not checked; give --key")
    assert library.asked == []


def test_a_signature_by_another_key(root: Path, home: Home, library: Library, key: Path) -> None:
    put(root, SIGNATURE, signature_text(statement(digests_of(root))))
    library.bad = "was not made by this key, or was changed"
    found = verifying.verify(root, home, SILENT, key=key)
    assert [str(each) for each in found.checked.faults] == [
        "model.sig was not made by this key, or was changed"
    ]
    assert found.describe()[-1].startswith("Signature: BAD")


def test_a_key_that_is_none_is_the_users_mistake(
    root: Path, home: Home, library: Library, key: Path
) -> None:
    put(root, SIGNATURE, signature_text(statement(digests_of(root))))
    library.error = StageError(f"{key} is no public key in PEM form", "Make one.")
    with pytest.raises(UsageError, match="is no public key") as caught:
        verifying.verify(root, home, SILENT, key=key)
    assert caught.value.hint == "Make one."


# Demand


def test_a_whole_bundle_may_be_served(root: Path, home: Home, library: Library) -> None:
    verifying.require_whole(Bundle.read(root), home, SILENT)


def test_a_damaged_bundle_must_not_be_served(root: Path, home: Home, library: Library) -> None:
    bundle = Bundle.read(root)
    put(root, "LICENSE", "MADE up.\n")
    with pytest.raises(BundleError, match="has 1 problem:\n  LICENSE was changed") as caught:
        verifying.require_whole(bundle, home, SILENT)
    (problem,) = caught.value.as_json()["problems"]  # type: ignore[misc, attr-defined]
    assert problem["file"] == "LICENSE"
    assert "build it again" in caught.value.hint


def test_a_bundle_that_is_replaced_meanwhile_must_not_be_served(
    root: Path, home: Home, library: Library
) -> None:
    bundle = Bundle.read(root)
    put(root, "LICENSE", "Another.\n")
    seal(root)
    with pytest.raises(BundleError, match="was replaced while"):
        verifying.require_whole(bundle, home, SILENT)


def test_a_key_demands_a_signature_and_says_how_to_get_one(
    root: Path, home: Home, library: Library, key: Path
) -> None:
    with pytest.raises(BundleError, match="is not signed") as caught:
        verifying.require_whole(Bundle.read(root), home, SILENT, key)
    assert "deployer sign BUNDLE" in caught.value.hint


# Sign


def test_a_bundle_is_signed_once(root: Path, home: Home, library: Library, key: Path) -> None:
    signed = verifying.sign(root, key, home, SILENT)
    ((worker, request),) = library.asked
    assert worker == "sign_bundle"
    assert request == {
        "key": str(key),
        "password_file": None,
        "name": "demo-q4_0",
        "digests": digests_of(root),
    }
    assert signed.as_json()["key"] == KEY
    assert signed.path.stat().st_mode & 0o777 == 0o444
    assert verifying.verify(root, home, SILENT).checked.signature.state == "unchecked"
    with pytest.raises(UsageError, match="is signed already") as caught:
        verifying.sign(root, key, home, SILENT)
    assert "--replace" in caught.value.hint
    assert sorted(path.name for path in root.iterdir() if path.name.startswith(".")) == []


def test_a_bad_signature_can_be_replaced(
    root: Path, home: Home, library: Library, key: Path
) -> None:
    put(root, SIGNATURE, b"no signature")
    verifying.sign(root, key, home, SILENT, replace=True)
    assert verifying.verify(root, home, SILENT).ok


def test_a_link_for_a_signature_is_replaced_and_not_followed(
    root: Path, home: Home, library: Library, key: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("precious", encoding="utf-8")
    (root / SIGNATURE).symlink_to(tmp_path / "precious")
    verifying.sign(root, key, home, SILENT, replace=True)
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "precious"
    assert not (root / SIGNATURE).is_symlink()


def test_a_damaged_bundle_is_not_signed(
    root: Path, home: Home, library: Library, key: Path
) -> None:
    put(root, "LICENSE", "Other.\n\n")
    with pytest.raises(BundleError, match="LICENSE has 8 bytes"):
        verifying.sign(root, key, home, SILENT)
    assert library.asked == []
    assert not (root / SIGNATURE).exists()


def test_a_signature_that_is_not_of_these_files_is_not_kept(
    root: Path, home: Home, library: Library, key: Path
) -> None:
    library.change = lambda value: statement({"other": "0" * 64})
    with pytest.raises(StageError, match="of other files"):
        verifying.sign(root, key, home, SILENT)
    assert not (root / SIGNATURE).exists()


class Warnings(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)


def test_a_key_that_others_can_read_is_warned_of(
    root: Path, home: Home, library: Library, key: Path
) -> None:
    key.chmod(0o644)
    progress = Warnings()
    verifying.sign(root, key, home, progress)
    assert progress.said == [f"others on this machine can use {key}; run: chmod 600 {key}"]


def test_a_key_that_cannot_be_read(root: Path, home: Home, library: Library, key: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        verifying.sign(root, key.with_name("absent"), home, SILENT)
    library.error = StageError(f"the key {key} is encrypted", "Give its password.")
    with pytest.raises(UsageError, match="is encrypted"):
        verifying.sign(root, key, home, SILENT)


# Commands


def test_the_command_exits_by_what_was_found(
    root: Path, home: Home, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = CliRunner()
    good = run.invoke(commands.verify, [str(root), "--json"])
    assert (good.exit_code, json.loads(good.stdout)["ok"]) == (0, True)
    put(root, "x.py", "")
    bad = run.invoke(commands.verify, [str(root), "--json"])
    assert (bad.exit_code, json.loads(bad.stdout)["ok"]) == (1, False)
    told = run.invoke(commands.verify, [str(root)])
    assert told.exit_code == 1
    assert "x.py is not listed in the manifest" in told.stdout
    assert run.invoke(commands.verify, [str(root), "--key", "absent.pem"]).exit_code == 2
    monkeypatch.setenv("DEPLOYER_VERIFY_KEY", "absent.pem")
    assert run.invoke(commands.verify, [str(root)]).exit_code == 2


def test_the_command_signs(root: Path, home: Home, library: Library, key: Path) -> None:
    run = CliRunner()
    signed = run.invoke(commands.sign, [str(root), "--key", str(key), "--json"])
    assert (signed.exit_code, json.loads(signed.stdout)["key"]) == (0, KEY)
    again = run.invoke(commands.sign, [str(root), "--key", str(key), "--replace"])
    assert again.exit_code == 0
    assert again.stdout.startswith("Signed demo-q4_0 (")
