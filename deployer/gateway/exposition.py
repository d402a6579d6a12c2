"""Prometheus's text format, taken apart and put together line by line. Pure.

A Prometheus server refuses the whole of a text for one line that is wrong. What engines write is
passed on, so a wrong line of theirs must not hide everybody's figures: it is left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

LONGEST_LINE = 16_384
KINDS = frozenset({"counter", "gauge", "histogram", "summary", "untyped"})
_NUMBER = r"(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?\d++)?+"
_LABEL = r'[ \t]*+[a-zA-Z_][a-zA-Z0-9_]*+[ \t]*+=[ \t]*+"(?:[^"\\]|\\[\\"n])*+"[ \t]*+'
_SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*+)[ \t]*+"
    rf"(?:\{{((?:{_LABEL}(?:,|(?=\}})))*+)[ \t]*+\}})?+[ \t]*+"
    rf"(?<=[ \t}}])([+-]?(?:{_NUMBER}|[Ii]nf|[Nn]a[Nn]))(?:[ \t]++-?\d++)?+[ \t]*+"
)
_PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+"((?:[^"\\]|\\.)*+)"')
_COMMENT = re.compile(r"#[ \t]++(HELP|TYPE)[ \t]++([a-zA-Z_:][a-zA-Z0-9_:]*+)(?:[ \t]++(.*+))?+")
_HELP = re.compile(r"\\(\\|n)?")
_ESCAPED = re.compile(r"\\(.)")
_PARTS = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
_BOUNDS = {"histogram": "le", "summary": "quantile"}


@dataclass(frozen=True)
class Sample:
    """One figure: its name, its labels, its value."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass
class Family:
    """The samples that share one HELP and TYPE. `lines`: (name, labels as written, value)."""

    name: str
    kind: str = "untyped"
    help: str = ""
    lines: list[tuple[str, str, str]] = field(default_factory=list)


def samples(text: str, prefix: str = "") -> Iterator[Sample]:
    """The samples whose names begin with `prefix`, in order; wrong lines are passed over."""
    for line in text.split("\n"):
        if not line.startswith(prefix) or len(line) > LONGEST_LINE:
            continue
        if found := _SAMPLE.fullmatch(line):
            labels = {name: _unescaped(value) for name, value in _PAIR.findall(found[2] or "")}
            yield Sample(found[1], labels, float(found[3]))


def families(text: str) -> tuple[dict[str, Family], int]:
    """(families by name, lines left out because the format does not allow them).

    Timestamps are left out as well: a figure is as old as its scrape.
    """
    found: dict[str, Family] = {}
    seen: set[tuple[str, str]] = set()
    wrong = 0
    for line in text.split("\n"):
        line = line.strip()
        if line.startswith("#"):
            _describe(found, line)
        elif line:
            wrong += not _add(found, seen, line)
    return {name: family for name, family in found.items() if family.lines}, wrong


def joined(parts: Iterable[tuple[str, Family]], label: str) -> list[str]:
    """The lines of one text, made of (server, family) for many servers.

    Each sample gets `label` with its server's name; HELP and TYPE stand once. A family to which a
    server before gave another type is left out: one name has one type.
    """
    merged: dict[str, tuple[Family, list[str]]] = {}
    for server, family in parts:
        first, lines = merged.setdefault(family.name, (family, []))
        if first.kind != family.kind:
            continue
        own = f'{label}="{escaped(server)}"'
        lines.extend(
            f"{name}{{{own},{labels}}} {value}" if labels else f"{name}{{{own}}} {value}"
            for name, labels, value in family.lines
        )
    out: list[str] = []
    for name, (family, lines) in merged.items():
        out += [*described(name, family.kind, family.help), *lines]
    return out


def described(name: str, kind: str, told: str) -> list[str]:
    """HELP, where there is something to tell, and TYPE of a family."""
    return [*([f"# HELP {name} {told}"] if told else []), f"# TYPE {name} {kind}"]


def escaped(value: str) -> str:
    """A label's value as the format writes it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _unescaped(value: str) -> str:
    return _ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], value)


def _describe(found: dict[str, Family], line: str) -> None:
    """Take HELP or TYPE of a family that has no sample yet; other comments say nothing."""
    comment = _COMMENT.fullmatch(line[:LONGEST_LINE])
    if comment is None:
        return
    word, name, told = comment[1], comment[2], comment[3] or ""
    family = found.setdefault(name, Family(name))
    if family.lines:
        return
    if word == "TYPE":
        family.kind = told if told in KINDS else "untyped"
    elif not family.help:
        family.help = _HELP.sub(lambda found: found[0] if found[1] else r"\\", told.strip())


def _add(found: dict[str, Family], seen: set[tuple[str, str]], line: str) -> bool:
    """Add a sample to its family; False where it is none, or a second one of the same labels."""
    if len(line) > LONGEST_LINE:
        return False
    sample = _SAMPLE.fullmatch(line)
    if sample is None:
        return False
    name, labels, value = sample[1], (sample[2] or "").strip(" \t,"), sample[3]
    family = _family_of(found, name)
    if (name, labels) in seen or not _labels_are_good(family, name, labels):
        return False
    seen.add((name, labels))
    family.lines.append((name, labels, value))
    return True


def _family_of(found: dict[str, Family], name: str) -> Family:
    if name not in found:
        for suffix in ("_bucket", "_sum", "_count"):
            family = found.get(name.removesuffix(suffix)) if name.endswith(suffix) else None
            if family and suffix in _PARTS.get(family.kind, ()):
                return family
    return found.setdefault(name, Family(name))


def _labels_are_good(family: Family, name: str, labels: str) -> bool:
    """No label twice; of a histogram or a summary, a bound that is a number."""
    if family.kind == "histogram" and name == family.name:
        return False
    pairs = _PAIR.findall(labels)
    if len({key for key, _ in pairs}) != len(pairs):
        return False
    bound = _BOUNDS.get(family.kind)
    needs = bound is not None and name == family.name + ("_bucket" if bound == "le" else "")
    given = dict(pairs).get(bound or "")
    if given is None:
        return not needs
    try:
        float(given)
    except ValueError:
        return False
    return True
