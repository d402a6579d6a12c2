"""What llama.cpp says of some strings and a conversation, given a GGUF file it has loaded."""

from _gguf_file import GGUFFile


def answer(server, gguf, strings, messages):
    """As `checkpoint_parity` answers; `server` is a LlamaServer that has loaded the file `gguf`."""
    metadata = GGUFFile(gguf).metadata
    rendered = None
    if metadata.get("tokenizer.chat_template") and messages:
        # Without a template of its own, llama.cpp would silently use a common one.
        question = {"messages": messages, "add_generation_prompt": True}
        rendered = server.ask("POST", "/apply-template", question)["prompt"]
    return {
        "ids": [server.tokenize(text, special=True) for text in strings],
        "rendered": rendered,
        "rendered_ids": None if rendered is None else server.tokenize(rendered, special=True),
        "bos": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos": metadata.get("tokenizer.ggml.eos_token_id"),
        "vocab_size": len(metadata.get("tokenizer.ggml.tokens", ())),
    }
