"""What a checkpoint's own tokenizer says of some strings and a conversation.

Request: {checkpoint, strings: [text], messages: [{role, content}]}. Response: {ids: [[id]],
rendered: text | null, rendered_ids: [id] | null, bos, eos, vocab_size, rope_theta}. Ids are without
special tokens at the ends; special tokens within a string are recognized. `_gguf_parity` answers
the same for the converted file, and the two must be equal.
"""

import json
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _checkpoint_files import rope_theta
from _protocol import WorkerError, progress, run

RENDER_SECONDS = 2.0


def main(request):
    progress(note="loading the checkpoint's tokenizer")
    tokenizer = _load(request["checkpoint"])

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    config = _config(request["checkpoint"])
    rendered = None
    if tokenizer.chat_template and request["messages"]:
        rendered = _render(tokenizer, request["messages"])
    return {
        "ids": [encode(text) for text in request["strings"]],
        "rendered": rendered,
        "rendered_ids": None if rendered is None else encode(rendered),
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "vocab_size": max(len(tokenizer), int(config.get("vocab_size") or 0)),
        "rope_theta": rope_theta(config),
    }


def _load(checkpoint):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).splitlines()[:1]
        raise WorkerError(
            f"the checkpoint's tokenizer cannot be loaded: {' '.join(first)}",
            "The checkpoint must hold its tokenizer's files and need no code of its own.",
        ) from error


def _render(tokenizer, messages):
    """The conversation as the chat template writes it; a template is somebody else's program."""
    from jinja2 import TemplateError

    def too_long(*_):
        raise WorkerError(
            f"the chat template did not finish in {RENDER_SECONDS:.0f} s",
            "It may be hostile: use a checkpoint you trust.",
        )

    signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, RENDER_SECONDS)
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, OverflowError, MemoryError, TypeError, ValueError) as error:
        raise WorkerError(
            f"the chat template cannot be rendered: {error}",
            "Mend chat_template in the checkpoint's tokenizer files, or use another checkpoint.",
        ) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _config(checkpoint):
    """The language model's part of config.json."""
    config = json.loads(Path(checkpoint, "config.json").read_text(encoding="utf-8"))
    return config.get("text_config") or config


if __name__ == "__main__":
    run(main)
