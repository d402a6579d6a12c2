"""A signature file is read in its one spelling only, and must list exactly the bundle's files."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from bundle_files import KEY, signature_document, signature_text, statement
from hypothesis import given
from hypothesis import strategies as some

from deployer.verification.reading import Unreadable
from deployer.verification.signature import compare, parse_signature

DIGESTS = {"manifest.json": "1" * 64, "model.gguf": "2" * 64, "config.json": "3" * 64}
GOOD = signature_text(statement(DIGESTS))


def test_a_signature_names_its_key_and_its_files() -> None:
    signature = parse_signature(GOOD)
    assert signature.key == KEY
    assert signature.digests == DIGESTS
    assert compare(signature, DIGESTS) == []


def problems(digests: dict[str, str]) -> list[str]:
    return [str(fault) for fault in compare(parse_signature(GOOD), digests)]


def test_a_signature_of_other_files_is_refused() -> None:
    assert problems({**DIGESTS, "new.json": "4" * 64}) == ["model.sig does not cover new.json"]
    less = {name: digest for name, digest in DIGESTS.items() if name != "config.json"}
    (problem,) = problems(less)
    assert "covers 'config.json', which the bundle does not hold" in problem
    (problem,) = problems({**DIGESTS, "model.gguf": "5" * 64})
    assert "is of another content of model.gguf" in problem


def changed(path: str, value: Any) -> bytes:
    """The good document with one value replaced, or dropped where it is None."""
    document = signature_document(json.dumps(statement(DIGESTS)).encode())
    *inner, last = path.split(".")
    place: Any = document
    for step in inner:
        place = place[int(step) if step.isdigit() else step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return signature_text(document)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not valid JSON"),
        (b"[]", "no signature by a key"),
        (b"3", "no signature by a key"),
        (GOOD + b"\n", "not spelled"),
        (b" " + GOOD, "not spelled"),
        (GOOD.replace(b":", b": ", 1), "not spelled"),
        (GOOD.replace(b"mediaType", b"media\\u0054ype"), "not spelled"),
        (changed("mediaType", "application/json"), "not spelled"),
        (changed("more", 1), "not spelled"),
        (changed("verificationMaterial.tlogEntries", None), "not spelled"),
        (changed("verificationMaterial.publicKey.hint", ""), "does not name its public key"),
        (changed("verificationMaterial.publicKey.hint", "A" * 64), "does not name its public key"),
        (changed("verificationMaterial.publicKey", None), "no signature by a key"),
        (changed("dsseEnvelope.payloadType", "text/plain"), "not spelled"),
        (changed("dsseEnvelope.payload", "e30=\n"), "not valid base64"),
        (changed("dsseEnvelope.payload", "e31="), "not spelled"),  # bits that no byte takes
        (changed("dsseEnvelope.payload", 7), "no signature by a key"),
        (changed("dsseEnvelope.payload", "e30="), "no statement about files"),
        (changed("dsseEnvelope.signatures", []), "no signature by a key"),
        (changed("dsseEnvelope.signatures.0.keyid", "x"), "not spelled"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_anything_but_the_one_spelling_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        parse_signature(raw)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "statement of another kind"),
        ({"predicateType": "https://model_signing/Digests/v0.1"}, "statement of another kind"),
        ({"predicate": {"serialization": {"method": "shards"}, "resources": []}}, "another kind"),
        ({"predicate": {}}, "no statement about files"),
        ({"predicate": []}, "no statement about files"),
        ({"predicate": {"serialization": {"method": "files"}, "resources": [
            {"name": "a", "digest": "b", "algorithm": "md5"}]}}, "without its SHA-256"),
        ({"predicate": {"serialization": {"method": "files"}, "resources": [
            {"name": "a", "digest": "b", "algorithm": "sha256"}] * 2}}, "lists 'a' twice"),
    ],
)  # fmt: skip
def test_a_statement_of_another_kind_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        parse_signature(signature_text({**statement(DIGESTS), **change}))


def test_a_name_twice_in_the_statement_is_refused() -> None:
    payload = json.dumps(statement(DIGESTS)).replace('"_type"', '"_type": "x", "_type"', 1)
    with pytest.raises(Unreadable, match="stands twice"):
        parse_signature(signature_text(signature_document(payload.encode())))


def test_what_a_changed_byte_leaves_unseen_is_signed_itself() -> None:
    """Without the key a change can hide in the payload's spaces, the signature and the key's name:
    the first two are signed, the last is compared with the key."""
    numbers = random.Random(6)
    unseen = 0
    for _ in range(2000):
        place, bit = numbers.randrange(len(GOOD)), 1 << numbers.randrange(8)
        raw = bytearray(GOOD)
        raw[place] ^= bit
        try:
            found = parse_signature(bytes(raw))
        except Unreadable:
            continue
        if compare(found, DIGESTS):
            continue
        unseen += 1
        before, after = json.loads(GOOD), json.loads(raw)
        told = [_parts(each) for each in (before, after)]
        assert told[0] != told[1]
    assert unseen < 700


def _parts(document: dict[str, Any]) -> tuple[str, str, str]:
    envelope = document["dsseEnvelope"]
    hint = document["verificationMaterial"]["publicKey"]["hint"]
    return hint, envelope["payload"], envelope["signatures"][0]["sig"]


@given(some.binary(max_size=300))
def test_random_bytes_are_refused_and_crash_nothing(raw: bytes) -> None:
    with pytest.raises(Unreadable):
        parse_signature(raw)
