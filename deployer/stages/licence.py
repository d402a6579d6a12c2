"""Which licence a model's source declares: what is written there, and nothing that is guessed."""

from __future__ import annotations

import re
from pathlib import Path

from deployer.sbom import LICENCES

FILES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
"""Names of files that belong to a licence."""
CARD = "README.md"
READ_BYTES = 16384
SPDX = {name.lower(): name for name in LICENCES}
"""Model cards name these by their SPDX id in small letters."""
_TITLES = (
    ("Apache-2.0", r"\s*Apache License\s+Version 2\.0, January 2004\b"),
    ("MIT", r"\s*(The )?MIT License\b"),
)
"""What licence files begin with that name themselves."""
_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---\s*$", re.DOTALL | re.MULTILINE)
_FIELD = re.compile(r"^(license|license_name):[ \t]*[\"']?([\w.+-]+)[\"']?[ \t\r]*$", re.MULTILINE)


def declared(source: Path) -> str | None:
    """The licence that a checkpoint's model card names, else the one its licence file begins with.

    An SPDX id where it is one of `SPDX`, else the name as the card has it; None where nothing is
    told.
    """
    fields = dict(_FIELD.findall(_front(_beginning(source / CARD))))
    named = fields.get("license")
    if named == "other":
        named = fields.get("license_name", named)
    if named is not None:
        return SPDX.get(named.lower(), named)
    for path in sorted(path for pattern in FILES[:3] for path in source.glob(pattern)):
        text = _beginning(path)
        for name, title in _TITLES:
            if re.match(title, text):
                return name
    return None


def _front(text: str) -> str:
    """A model card's fields: what stands between its first two lines of dashes."""
    found = _FRONT.match(text)
    return found[1] if found else ""


def _beginning(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(READ_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
