"""What llama.cpp says of some strings and a conversation, given a GGUF file it has loaded."""

from _llama_template import render


def answer(model, gguf, strings, messages):
    """As `checkpoint_parity` answers; `model` is a LlamaModel of the file `gguf`."""
    architecture = model.metadata("general.architecture")
    rendered = None
    # Without a template of the model's own the server would silently use a common one.
    if model.metadata("tokenizer.chat_template") and messages:
        rendered = render(gguf, messages)
    return {
        "ids": [model.tokenize(text, special=True) for text in strings],
        "rendered": rendered,
        "rendered_ids": None if rendered is None else model.tokenize(rendered, special=True),
        "bos": _number(model.metadata("tokenizer.ggml.bos_token_id")),
        "eos": _number(model.metadata("tokenizer.ggml.eos_token_id")),
        "vocab_size": model.vocabulary,
        "rope_theta": _number(model.metadata(f"{architecture}.rope.freq_base"), float),
    }


def _number(text, kind=int):
    return None if text is None else kind(text)
