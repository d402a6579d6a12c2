"""Parsers with a fault each, on purpose: what finds no fault in them finds none anywhere."""

from __future__ import annotations

import random
import time
from pathlib import Path

from fuzzing import Target

from deployer.errors import DeployerError


def _number(rng: random.Random) -> bytes:
    return bytes([rng.randrange(40)])


def _crash(data: bytes, _folder: Path) -> bool:
    if data[0] == 7:
        raise KeyError("a crash")
    if data[0] < 20:
        raise DeployerError("refused", "as it should be")
    return True


def _hang(data: bytes, _folder: Path) -> bool:
    if data[0] == 7:
        time.sleep(60)
    return True


def _greed(data: bytes, _folder: Path) -> bool:
    return data[0] != 7 or len(bytearray(1 << 30)) > 0


def _speechless(data: bytes, _folder: Path) -> bool:
    if data[0] == 7:
        raise DeployerError("")
    return True


FAULTY = tuple(
    Target(f"faulty-{name}", f"a parser with a fault: {name}", _number, check, count=60)
    for name, check in
    (("crash", _crash), ("hang", _hang), ("greed", _greed), ("speechless", _speechless))
)  # fmt: skip
