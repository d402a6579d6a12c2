"""What llama.cpp says of some strings and a conversation, given a GGUF file.

Request: {gguf, strings: [text], messages: [{role, content}]}. Response: as `checkpoint_parity`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _gguf_file import GGUFFile
from _llama_server import LlamaServer
from _protocol import progress, run

ANSWER_SECONDS = 60.0


def main(request):
    metadata = GGUFFile(request["gguf"]).metadata
    progress(note="loading the model")
    server = LlamaServer(request["gguf"], n_ctx=512, timeout=ANSWER_SECONDS)
    rendered = None
    if metadata.get("tokenizer.chat_template") and request["messages"]:
        # Without a template of its own, llama.cpp would silently use a common one.
        question = {"messages": request["messages"], "add_generation_prompt": True}
        rendered = server.ask("POST", "/apply-template", question)["prompt"]
    return {
        "ids": [server.tokenize(text, special=True) for text in request["strings"]],
        "rendered": rendered,
        "rendered_ids": None if rendered is None else server.tokenize(rendered, special=True),
        "bos": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos": metadata.get("tokenizer.ggml.eos_token_id"),
        "vocab_size": len(metadata.get("tokenizer.ggml.tokens", ())),
    }


if __name__ == "__main__":
    run(main)
