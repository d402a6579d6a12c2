"""API keys: only digests on the disk, bad files refused, revocation at the next request."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from gateway_samples import Heard
from hypothesis import given
from hypothesis import strategies as st

from deployer.errors import UsageError
from deployer.gateway import keys
from deployer.gateway.keys import Key, KeyRing, add_key, new_key, read_keys, revoke_key
from deployer.progress import SILENT


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def added(file: Path, name: str = "ops", **limits: int) -> str:
    return add_key(file, new_key(name, **limits), SILENT)  # type: ignore[arg-type]


def test_a_secret_is_256_random_bits_and_not_in_the_file(file: Path) -> None:
    secrets = {added(file, name) for name in ("a", "b", "c")}
    assert len(secrets) == 3
    for secret in secrets:
        assert secret.startswith("dk-") and len(secret) == 3 + 52 and secret.islower()
        assert secret not in file.read_text(encoding="utf-8")
    digests = {hashlib.sha256(secret.encode()).hexdigest() for secret in secrets}
    assert {key.sha256 for key in read_keys(file).keys} == digests


def test_the_file_is_for_its_owner_only_and_nothing_is_left_beside_it(file: Path) -> None:
    added(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in file.parent.iterdir()} <= {"keys.json", ".keys.json.lock"}


def test_a_link_to_the_file_stays_a_link(file: Path, tmp_path: Path) -> None:
    added(file)
    link = tmp_path / "link.json"
    link.symlink_to(file)
    added(link, "second")
    assert link.is_symlink()
    assert [key.id for key in read_keys(file).keys] == ["ops", "second"]


def test_a_name_is_taken_once(file: Path) -> None:
    added(file)
    before = file.read_bytes()
    with pytest.raises(UsageError, match="has a key ops already"):
        added(file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["", "-x", "a b", "a\n", "x" * 65, "../x", "anonymous", "ä"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError):
        new_key(name)


def test_limits_that_cannot_be() -> None:
    with pytest.raises(UsageError):
        new_key("ops", concurrent=0)
    with pytest.raises(UsageError):
        new_key("ops", models=("no such\nmodel",))


def test_a_file_of_another_user_is_not_taken_over(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added(file)
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    with pytest.raises(UsageError, match="another user"):
        added(file, "second")


def test_a_file_has_a_bounded_number_of_keys(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MAX_KEYS", 1)
    added(file)
    with pytest.raises(UsageError, match="no more"):
        added(file, "second")


def test_a_full_disk_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added(file)
    before = file.read_bytes()

    def full(path: Path, text: str, mode: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keys, "write_atomically", full)
    with pytest.raises(UsageError, match="No space left"):
        added(file, "second")
    assert file.read_bytes() == before


def test_what_is_not_there_cannot_be_revoked(file: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        revoke_key(file, "ops", SILENT)
    assert not file.exists()
    added(file)
    with pytest.raises(UsageError, match="has no key other"):
        revoke_key(file, "other", SILENT)


GOOD = {"id": "ops", "sha256": "a" * 64, "created": "2026-01-31T12:00:00Z"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '{"version": 2, "keys": []}',
        json.dumps({"version": 1, "keys": [GOOD, GOOD]}),
        json.dumps({"version": 1, "keys": [GOOD, {**GOOD, "id": "second"}]}),
        json.dumps({"version": 1, "keys": [{**GOOD, "sha256": "b" * 63}]}),
        json.dumps({"version": 1, "keys": [{**GOOD, "sha256": "B" * 64}]}),
        json.dumps({"version": 1, "keys": [{**GOOD, "concurrent": "4"}]}),
        json.dumps({"version": 1, "keys": [{**GOOD, "per_hour": 4}]}),
        json.dumps({"version": 1, "\x1b[2J" * 1000: 1}),
        "[" * 100_000,
    ],
    ids=[
        "empty", "list", "null", "half", "version", "twice", "digest twice", "short digest",
        "large letters", "text for a number", "unknown limit", "wild name", "deep",
    ],
)  # fmt: skip
def test_a_file_that_is_not_as_it_should_be_is_refused_whole(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_keys(file)
    assert "b" * 63 not in caught.value.message  # what stands in it is never shown
    assert caught.value.message.isprintable() and len(caught.value.message) < 400


def test_what_is_no_file_is_not_waited_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_keys(file)
    monkeypatch.setattr(keys, "MAX_FILE", 10)
    file.unlink()
    file.write_text(" " * 11, encoding="utf-8")
    with pytest.raises(UsageError, match="larger than"):
        read_keys(file)


def test_without_a_file_everybody_is_let_in() -> None:
    ring = KeyRing(None, Heard())
    assert ring.open and ring.ids == {"anonymous"}
    assert ring.find(None) == ring.find("Bearer dk-anything") == Key.anonymous()


def test_a_key_opens_and_only_as_it_was_made(file: Path) -> None:
    secret = added(file, concurrent=3)
    ring = KeyRing(file, Heard())
    found = ring.find(f"Bearer {secret}")
    assert found is not None and found.id == "ops" and found.concurrent == 3
    assert ring.find(f"bearer  {secret} ") == found
    for wrong in (
        None, "", "Bearer", "Bearer ", secret, f"Basic {secret}", f"Bearer {secret.upper()}",
        f"Bearer {secret}x", f"Bearer {secret[:-1]}", "Bearer " + "x" * 100_000, "Bearer \udcff",
        f"Bearer {found.model_dump().get('sha256')}",
    ):  # fmt: skip
        assert ring.find(wrong) is None, wrong


@given(st.text("Bearer dk-ab2\n\udcff", max_size=80))
def test_no_other_text_opens(text: str) -> None:
    ring = KeyRing(None, Heard())
    ring._path, ring._keys = Path("/nowhere"), {}
    assert ring.find(text) is None


def test_a_key_of_some_models() -> None:
    assert new_key("ops").allows("any")
    some = new_key("ops", models=("chat",))
    assert some.allows("chat") and not some.allows("other")


def test_revocation_holds_at_the_next_request(file: Path) -> None:
    first, second = added(file, "first"), added(file, "second")
    heard = Heard()
    ring = KeyRing(file, heard)
    assert ring.find(f"Bearer {first}") is not None
    revoke_key(file, "first", SILENT)
    assert ring.find(f"Bearer {first}") is None
    assert ring.find(f"Bearer {second}") is not None
    assert ring.ids == {"second"}
    assert heard.events == [
        ("keys_applied", {"keys": 2, "reachable_by_others": False}),
        ("keys_applied", {"keys": 1, "reachable_by_others": False}),
    ]


def test_a_bad_file_changes_nothing_and_is_told_once(file: Path) -> None:
    secret = added(file)
    heard = Heard()
    ring = KeyRing(file, heard)
    for break_it in (lambda: file.write_text("{", encoding="utf-8"), file.unlink):
        break_it()
        for _ in range(3):
            assert ring.find(f"Bearer {secret}") is not None
        assert not ring.check()
    assert heard.names == ["keys_applied", "keys_refused", "keys_refused"]
    added(file, "other")
    assert ring.check() and ring.find(f"Bearer {secret}") is None


def test_a_missing_file_lets_nobody_in(file: Path) -> None:
    heard = Heard()
    ring = KeyRing(file, heard)
    assert not ring.open and ring.find(None) is None
    assert heard.names == ["keys_refused"]
    secret = added(file)
    assert ring.find(f"Bearer {secret}") is not None


def test_another_file_forgets_the_keys_of_the_old_one(file: Path, tmp_path: Path) -> None:
    secret = added(file)
    ring = KeyRing(file, Heard())
    ring.use(tmp_path / "missing.json")
    assert ring.find(f"Bearer {secret}") is None
    ring.use(file)
    assert ring.find(f"Bearer {secret}") is not None
    ring.use(None)
    assert ring.open


def test_a_file_that_others_can_use_is_told(file: Path) -> None:
    added(file)
    file.chmod(0o644)
    heard = Heard()
    KeyRing(file, heard)
    assert heard.last("keys_applied")["reachable_by_others"] is True


def test_no_record_shows_a_digest(file: Path) -> None:
    added(file)
    stored = read_keys(file).keys[0]
    assert stored.sha256 not in repr(stored) and stored.sha256 not in str(stored)
