"""Convert: a checkpoint becomes a 16-bit GGUF that tokenizes and prompts exactly as it did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployer.errors import StageError
from deployer.gguf_file import inspect_gguf
from deployer.stages.context import StageContext

GGUF = "model.gguf"
PARITY_SECONDS = 600.0
"""A chat template is somebody else's program: rendering it never takes longer than this."""
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


def run(
    checkpoint: Path, kind: str, name: str, folder: Path, context: StageContext
) -> Mapping[str, Any]:
    """Convert `checkpoint` to a GGUF of type `kind` (f16) and prove that it speaks the same.

    `name` is written into the file as the model's name.

    Raises StageError where weights are not finite, or token ids or the chat template differ.
    """
    target = folder / GGUF
    tree = context.toolchain("convert").source
    question = {"strings": list(TRICKY_STRINGS), "messages": list(MESSAGES)}
    context.require_finite(checkpoint)
    with context.progress.step(f"convert to {kind} GGUF") as step:
        request = {
            "source_tree": str(tree),
            "checkpoint": str(checkpoint),
            "out": str(target),
            "type": kind,
            "name": name,
            **question,
        }
        before = context.work("convert_checkpoint", "convert", request, step)["parity"]
    context.require_finite(target)  # what bf16 holds may be too large for f16
    with context.progress.step("compare tokens and chat template"):
        request = {"gguf": str(target), **question}
        after = context.work("gguf_parity", "llama-cpp", request, timeout=PARITY_SECONDS)
    _require_equal(before, after)
    parity = {"strings": len(TRICKY_STRINGS), "chat_template": before["rendered"] is not None}
    return {"gguf": inspect_gguf(target).as_json(), "parity": parity}


def _require_equal(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    problems = differences(before, after)
    if problems:
        raise StageError(
            f"the converted model does not tokenize like its checkpoint: {problems[0]}"
            + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""),
            "The converter does not know this tokenizer well; serving it would change answers.",
        )


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
    return problems


def _some(ids: list[int]) -> str:
    return str(ids[:8]).replace("]", ", …]") if len(ids) > 8 else str(ids)
