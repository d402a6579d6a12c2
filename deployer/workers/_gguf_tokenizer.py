"""The tokenizer of a GGUF file as the files a checkpoint has.

Byte-pair vocabularies are written out directly, with the pre-tokenizer their GGUF names (reading
them through transformers loses it, so that digits are split otherwise). Others go through
transformers. The build compares token ids before and after, so a wrong guess is found there.
"""

import json

from _protocol import WorkerError, progress
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as split

CONTROL, USER_DEFINED = 3, 4
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"add_prefix_space": False, "trim_offsets": True}


def _by_pattern(digits):
    pattern = Regex(_WORDS.format(digits=digits))
    return split.Sequence(
        [split.Split(pattern, "isolated"), split.ByteLevel(use_regex=False, **_BYTES)]
    )


PRE_TOKENIZERS = {
    "default": lambda: split.ByteLevel(use_regex=True, **_BYTES),
    "gpt-2": lambda: split.ByteLevel(use_regex=True, **_BYTES),
    "smollm": lambda: split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(use_regex=True, **_BYTES)]
    ),
    "llama-bpe": lambda: _by_pattern("{1,3}"),
    "qwen2": lambda: _by_pattern(""),
}


def write_tokenizer(metadata, gguf, out):
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat_template.jinja."""
    progress(note="writing the tokenizer")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise WorkerError(f"{gguf.name} holds no tokenizer", "Use a file that was converted whole.")
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if metadata.get("tokenizer.ggml.model") == "gpt2" and pre in PRE_TOKENIZERS:
        byte_pair(metadata, pre).save(str(out / "tokenizer.json"), pretty=False)
    else:
        _through_transformers(gguf, out)
    special = _special_tokens(metadata, tokens)
    template = metadata.get("tokenizer.chat_template")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata[f"{metadata['general.architecture']}.context_length"],
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        **special,
    }
    if template:
        config["chat_template"] = template
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")
    for name, value in (("tokenizer_config", config), ("special_tokens_map", special)):
        text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
        (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _special_tokens(metadata, tokens):
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {
        ours: metadata.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in named.items()
    }
    return {f"{ours}_token": tokens[number] for ours, number in found.items() if number is not None}


def byte_pair(metadata, pre):
    """A `tokenizers` tokenizer with the file's vocabulary, merges and special tokens."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe")
    tokenizer = Tokenizer(model)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    kinds = metadata.get("tokenizer.ggml.token_type") or []
    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (CONTROL, USER_DEFINED):
            special = kind == CONTROL
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=special)])
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token") and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A",
            pair=f"{tokens[bos]} $A {tokens[bos]} $B",
            special_tokens=[(tokens[bos], bos)],
        )
    return tokenizer


def _through_transformers(gguf, out):
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    except (ValueError, KeyError, OSError) as error:
        raise WorkerError(
            f"the tokenizer of {gguf.name} cannot be read: {error}",
            "Name the original checkpoint as the source.",
        ) from error
    tokenizer.save_pretrained(str(out))
