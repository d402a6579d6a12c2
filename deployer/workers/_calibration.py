"""Calibration samples: full-length token sequences, spread evenly over a text or a set of chats.

Plain text becomes one run of token ids that is cut into consecutive pieces. Chats are rendered by
the model's own chat template and joined, so that every sample is full: quantizers drop or pad
others. The choice does not depend on chance: the same file gives the same samples.
"""

import json
from pathlib import Path

from _protocol import WorkerError, progress

_LONGER = "Give a longer calibration set, or lower calibration.samples or calibration.length."
MOST_CHARACTERS = 64
"""Of a set with more than this many characters per wanted token, only every n-th row is read."""


def load_samples(tokenizer, calibration):
    """`samples` lists of exactly `length` token ids each, from calibration {path, kind, ...}.

    `tokenizer` is one of transformers. Raises WorkerError where the file is no such set or gives
    too few samples.
    """
    samples, length = calibration["samples"], calibration["length"]
    progress(note="reading the calibration set")
    documents = read_documents(Path(calibration["path"]), calibration["kind"])
    documents = thin(documents, MOST_CHARACTERS * samples * length)
    ids, prefix = [], []
    for document in documents:
        if isinstance(document, str):
            prefix = _prefix(tokenizer)
            text = document
        else:
            text = _render(tokenizer, document)
        ids += tokenizer.encode(text, add_special_tokens=False)
    return spread(ids, samples, length, prefix)


def read_documents(path, kind):
    """Texts, or lists of messages, of a file of kind text, chats or rows."""
    try:
        if kind == "text":
            found = [path.read_text(encoding="utf-8")]
        elif path.suffix == ".parquet":
            found = [_document(row, path, number) for number, row in enumerate(_parquet(path), 1)]
        else:
            found = list(_json_lines(path))
    except (OSError, UnicodeDecodeError) as error:
        raise WorkerError(
            f"the calibration set {path.name} cannot be read: {error}", "It must be UTF-8 text."
        ) from error
    wanted = list if kind == "chats" else (str, list)
    if not all(isinstance(document, wanted) for document in found):
        raise WorkerError(
            f"{path.name} has rows without messages", "Chats are {messages: [{role, content}]}."
        )
    return [document for document in found if document and (kind != "text" or document.strip())]


def thin(documents, characters):
    """Every n-th of the documents, so that about `characters` are left of a far larger set."""
    total = sum(len(document if isinstance(document, str) else str(document))
                for document in documents)  # fmt: skip
    return documents[:: max(1, total // max(1, characters))] if len(documents) > 1 else documents


def spread(ids, samples, length, prefix=()):
    """`samples` pieces of `length` ids, evenly spread over `ids`; each starts with `prefix`."""
    body = length - len(prefix)
    available = len(ids) // body
    if available < samples:
        raise WorkerError(
            f"the calibration set gives {available} samples of {length} tokens; the recipe asks "
            f"for {samples}",
            _LONGER,
        )
    starts = [number * available // samples * body for number in range(samples)]
    return [[*prefix, *ids[start : start + body]] for start in starts]


def _json_lines(path):
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield _document(json.loads(line), path, number)
                except ValueError as error:
                    raise WorkerError(
                        f"line {number} of {path.name} is no JSON: {error}",
                        "A calibration set of rows is JSONL: one JSON object a line.",
                    ) from error


def _parquet(path):
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = [name for name in ("messages", "text") if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns):
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise WorkerError(
            f"{path.name} is no usable parquet file: {error}", "Fetch the data set again."
        ) from error


def _document(row, path, number):
    """The messages of a row, else its text."""
    row = row if isinstance(row, dict) else {}
    messages = row.get("messages")
    if isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
        return messages
    if isinstance(row.get("text"), str):
        return row["text"]
    raise WorkerError(
        f"row {number} of {path.name} has neither messages nor text",
        "A calibration set has a column messages ([{role, content}]) or text.",
    )


def _prefix(tokenizer):
    """The BOS token where the tokenizer starts every text with it."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer.encode("a")[:1] == [bos] else []


def _render(tokenizer, messages):
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise WorkerError(
            "the model has no chat template, so that chats cannot be rendered",
            "Calibrate on plain text: set calibration.text.",
        )
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    except (TemplateError, KeyError, TypeError, ValueError) as error:
        raise WorkerError(
            f"the chat template refuses a conversation of the calibration set: {error}",
            "Every message needs a role that the template knows, and its content.",
        ) from error
