"""A server's arguments, taken apart by flag."""

from __future__ import annotations

from deployer.exporting.flags import Flag, flags, value, without

ARGUMENTS = (
    "/models", "--port", "8080", "--metrics", "--offset", "-1", "-tp", "2", "--json", '{"a": 1}',
    "--level=3", "--many", "a", "b",
)  # fmt: skip


def test_every_word_belongs_to_a_flag_or_stands_first() -> None:
    assert flags(ARGUMENTS) == (
        Flag("", ("/models",)),
        Flag("--port", ("8080",)),
        Flag("--metrics"),
        Flag("--offset", ("-1",)),
        Flag("-tp", ("2",)),
        Flag("--json", ('{"a": 1}',)),
        Flag("--level", ("3",)),
        Flag("--many", ("a", "b")),
    )


def test_no_word_is_lost() -> None:
    words = [word for flag in flags(ARGUMENTS) for word in flag.words]
    assert words == [part for word in ARGUMENTS for part in word.split("=")]


def test_flags_go_with_their_values() -> None:
    left = without(ARGUMENTS, ("--port", "--many", "--level"))
    assert left == (
        "/models", "--metrics", "--offset", "-1", "-tp", "2", "--json", '{"a": 1}',
    )  # fmt: skip


def test_the_value_of_a_flag() -> None:
    assert value(ARGUMENTS, "--port") == "8080"
    assert value(ARGUMENTS, "--level") == "3"
    assert value(ARGUMENTS, "--metrics") is None
    assert value(ARGUMENTS, "--absent") is None
    assert flags(()) == ()
