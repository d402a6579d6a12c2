"""A checkpoint's tokenizer and configuration, for the workers that score one."""

import json

import checkpoint_parity
from _protocol import WorkerError


def read_config(folder):
    """The language model's part of config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkerError(f"{folder.name} has no readable config.json: {error}") from error
    return config.get("text_config", config)


def parity(request):
    """The answer to the parity question, where one is asked, by the checkpoint's tokenizer."""
    if "strings" not in request:
        return None
    question = {name: request[name] for name in ("strings", "messages")}
    return checkpoint_parity.main({"checkpoint": request["model"], **question})


def load_tokenizer(folder):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise WorkerError(
            f"the tokenizer of {folder.name} cannot be loaded: {error}",
            "The checkpoint needs tokenizer.json and tokenizer_config.json.",
        ) from error


def encode(tokenizer, text):
    """The ids of a text, without special tokens at its ends."""
    return tokenizer.encode(text, add_special_tokens=False)


def check_length(window, length, limit):
    """Raise WorkerError where `length` tokens, which a window needs, are over the model's limit."""
    if limit and length > limit:
        raise WorkerError(
            f"a window of {window} tokens needs a context of {length}; the model has {limit}",
            f"Set quality.window to {limit - length + window} or less.",
        )


def last_line(error):
    """What an exception of somebody else's code says, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__
