"""Arguments of a server, one flag at a time: some targets set a few of them themselves. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_FLAG = re.compile(r"--?[A-Za-z]")


@dataclass(frozen=True)
class Flag:
    """A flag and its values; `name` is empty for what stands before the first one."""

    name: str
    values: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        return (self.name, *self.values) if self.name else self.values


def flags(arguments: Iterable[str]) -> tuple[Flag, ...]:
    """The arguments in groups; `--flag=value` is told apart like `--flag value`."""
    groups: list[list[str]] = [[""]]
    for word in arguments:
        if _FLAG.match(word):
            groups.append(word.split("=", 1))
        else:
            groups[-1].append(word)
    return tuple(Flag(name, tuple(values)) for name, *values in groups if name or values)


def without(arguments: Iterable[str], names: Iterable[str]) -> tuple[str, ...]:
    """The arguments but for these flags and their values."""
    refused = frozenset(names)
    return tuple(
        word for flag in flags(arguments) if flag.name not in refused for word in flag.words
    )


def value(arguments: Iterable[str], name: str) -> str | None:
    """The first value of a flag; None where it is not there, or has none."""
    for flag in flags(arguments):
        if flag.name == name and flag.values:
            return flag.values[0]
    return None
