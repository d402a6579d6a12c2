"""Small files are read with bounds; whatever they hold, the answer is a value or Unreadable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from deployer.verification.reading import Unreadable, parse_json, read_file, read_text


def test_a_file_up_to_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    with pytest.raises(Unreadable, match="has over 4 bytes"):
        read_file(path, 4)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("secret", encoding="utf-8")
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    for name, words in (
        ("link", "is a symbolic link"),
        ("pipe", "is no regular file"),
        (".", "cannot be read: Is a directory"),
        ("absent", "is missing"),
        ("target/below", "cannot be read"),
    ):
        with pytest.raises(Unreadable, match=words):
            read_file(tmp_path / name, 100)


def test_text_must_be_utf_8(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"ab\xff")
    with pytest.raises(Unreadable, match=r"no UTF-8 text: .* at byte 2"):
        read_text(tmp_path / "file", 100)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": {"a": 2, "a": 3}}', "'a' stands twice"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("1" * 5000, "not valid JSON"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
    ],
)
def test_json_that_two_readers_may_not_agree_upon_is_refused(text: str, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        parse_json(text)


def test_the_same_name_may_stand_in_two_objects() -> None:
    assert parse_json('[{"a": 1}, {"a": 2}]') == [{"a": 1}, {"a": 2}]


@given(some.binary(max_size=200))
def test_random_bytes_are_a_value_or_unreadable(raw: bytes) -> None:
    try:
        parse_json(raw)
    except Unreadable as error:
        assert str(error)
