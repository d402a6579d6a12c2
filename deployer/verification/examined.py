"""Which bundles were examined and found good, so that an unchanged one costs next to nothing.

What the files hold decides the outcome, and a bundle's digest names what they hold. So the digest
of a bundle that passed is remembered; whether the files are still those is checked every time.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from deployer.durable import write_atomically

RULES = 1
"""Raise it when the checks of contents change: what passed under older ones is examined again."""
KEPT = 1000


@dataclass
class Examined:
    """Digests of bundles that passed, newest last, in one small JSON file; losing it costs time."""

    path: Path
    passed: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Examined:
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            rules, passed = told["rules"], told["passed"]
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path)
        good = rules == RULES and isinstance(passed, list)
        return cls(path, [str(each) for each in passed] if good else [])

    def knows(self, digest: str) -> bool:
        return digest in self.passed

    def add(self, digest: str) -> None:
        """Remember a bundle that passed."""
        self.passed = [*(each for each in self.passed if each != digest), digest][-KEPT:]
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"rules": RULES, "passed": self.passed}, indent=1)
            write_atomically(self.path, text)
