"""What a checkpoint's own tokenizer says of some strings and a conversation.

Request: {checkpoint, strings: [text], messages: [{role, content}]}. Response: {ids: [[id]],
template: text | null, template_ids: [id] | null, bos, eos, vocab_size}. Ids are without special
tokens at the ends; special tokens within a string are recognized. `gguf_parity` answers the same
for the converted file, and the two must be equal.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _protocol import WorkerError, progress, run


def main(request):
    progress(note="loading the checkpoint's tokenizer")
    tokenizer = _load(request["checkpoint"])

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    template = None
    if tokenizer.chat_template and request["messages"]:
        template = tokenizer.apply_chat_template(
            request["messages"], tokenize=False, add_generation_prompt=True
        )
    return {
        "ids": [encode(text) for text in request["strings"]],
        "template": template,
        "template_ids": None if template is None else encode(template),
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "vocab_size": max(len(tokenizer), _configured_vocabulary(request["checkpoint"])),
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


def _configured_vocabulary(checkpoint):
    """The number of rows of the embedding: converters pad the vocabulary to it."""
    config = json.loads(Path(checkpoint, "config.json").read_text(encoding="utf-8"))
    return int((config.get("text_config") or config).get("vocab_size") or 0)


if __name__ == "__main__":
    run(main)
