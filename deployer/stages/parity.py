"""Parity: a converted model must tokenize, prompt and place tokens exactly as its checkpoint did.

The converter's process answers `QUESTION` with the checkpoint's own tokenizer, and the engine with
the converted file when it is scored; the two answers must be equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployer.artifacts import file_digest
from deployer.errors import StageError

TRICKY_STRINGS = (
    "Hello, world!",
    " leading space",
    "  two leading spaces",
    "trailing space ",
    "tabs\tand\nnew\n\nlines\r\n",
    " " * 33 + "long run of spaces",
    "ÄÖÜ ß é ñ — naïve “quotes”",
    "繁體中文與简体中文混排",
    "日本語のテキスト、한국어 텍스트",
    "emoji 🙂👩‍👩‍👧‍👦🏳️‍🌈 done",
    "<|im_start|>user\nnot a turn<|im_end|>",
    "</s><s>[INST] <unk> <pad>",
    "def f(x):\n    return x**2 if x != 0 else -1",
    "1234567890 3.14159 0xDEADBEEF 1e-9",
    "עברית العربية हिन्दी ไทย",
)
MESSAGES = (
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3? 你好 🙂"},
)
QUESTION: Mapping[str, Any] = {"strings": list(TRICKY_STRINGS), "messages": list(MESSAGES)}
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.*",
    "merges.txt",
)


def require_equal(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of two equal answers; raises StageError with what differs."""
    problems = differences(before, after)
    if problems:
        raise StageError(
            f"the converted model is not like its checkpoint: {problems[0]}"
            + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""),
            "The converter does not know this model well; serving it would change answers.",
        )
    return {"strings": len(TRICKY_STRINGS), "chat_template": before["rendered"] is not None}


def require_same_files(before: Path, after: Path) -> dict[str, Any]:
    """What a manifest says of a quantized checkpoint whose tokenizer files are the source's.

    Raises StageError naming a file of folder `before` that is missing or different in `after`, and
    where config.json says another base of the rotary embedding.
    """
    names = sorted({path.name for pattern in TOKENIZER_FILES for path in before.glob(pattern)})
    for name in names:
        if not (after / name).is_file() or file_digest(before / name) != file_digest(after / name):
            raise StageError(
                f"quantizing changed {name}; the model would tokenize or prompt differently",
                "Choose another quantization.tool.",
            )
    ours, theirs = _rope_theta(before), _rope_theta(after)
    if not _same_theta(ours, theirs):
        raise StageError(
            f"quantizing changed the base of the rotary embedding from {ours:g} to {theirs:g}",
            "The tool does not know this checkpoint's config.json; choose another.",
        )
    return {"unchanged_files": names}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two parity reports, in words; [] where they agree."""
    pairs = zip(TRICKY_STRINGS, before["ids"], after["ids"], strict=True)
    problems = [
        f"{text!r} gives the ids {_some(ours)} before and {_some(theirs)} after"
        for text, ours, theirs in pairs
        if ours != theirs
    ]
    if before["rendered"] != after["rendered"]:
        problems.append("the chat template renders the same conversation differently")
    elif before["rendered_ids"] != after["rendered_ids"]:
        problems.append("the rendered conversation gives other ids")
    problems += [
        f"{name} is {before[name]} before and {after[name]} after"
        for name in ("bos", "eos", "vocab_size")
        if before[name] != after[name]
    ]
    if not _same_theta(before.get("rope_theta"), after.get("rope_theta")):
        problems.append(
            f"the base of the rotary embedding is {before['rope_theta']:g} before and "
            f"{after['rope_theta']:g} after"
        )
    return problems


def _same_theta(before: float | None, after: float | None) -> bool:
    """Whether two bases agree; one that a side does not name cannot be compared."""
    return before is None or after is None or math.isclose(before, after, rel_tol=1e-3)


def _rope_theta(checkpoint: Path) -> float | None:
    """The base of the rotary embedding in a config.json; None where it is not one number."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config") or config
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta")
    return float(theta) if isinstance(theta, int | float) else None


def _some(ids: list[int]) -> str:
    return str(ids[:8]).replace("]", ", …]") if len(ids) > 8 else str(ids)
