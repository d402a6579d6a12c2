"""What scoring a text is in every engine: which token ids are scored, and how that is reported.

Windows do not overlap. Each is BOS and `window` - 1 tokens of the text, all of which are scored;
without BOS it is `window` tokens, of which the first is not scored. So a window has `window` - 1
scored tokens either way. What remains of the text after the last whole window is left out.
"""

import hashlib
import json
import math

from _distributions import Distributions
from _protocol import WorkerError, peak_memory, progress

SAMPLE_TOKENS = 24
SAMPLE_PROMPT = "The capital of France is"
CHARACTERS_PER_TOKEN = 32


class Windows:
    """The token ids of a request's text, cut into windows.

    `encode` gives a text's ids without special tokens, `begin` is the model's BOS or None. The
    request's `windows` is how many are scored, None for all that are whole. Raises WorkerError
    where the text has fewer.
    """

    def __init__(self, request, encode, begin):
        self.prefix = _prefix(request.get("bos"), begin)
        self.window = int(request["window"])
        share = self.window - len(self.prefix)  # of the text's tokens
        wanted = request.get("windows")
        ids = request.get("ids") or _front(encode, request["text"], share, wanted)
        whole = len(ids) // share
        self.count = whole if wanted is None else int(wanted)
        if whole < max(1, self.count):
            raise WorkerError(
                f"the text has {len(ids):,} tokens, enough for {whole} windows of {self.window:,}; "
                f"{self.count or 1} are to be scored",
                "Give a longer text, fewer or shorter windows: quality.text, .windows, .window.",
            )
        self.ids = ids[: self.count * share]
        self.ids_sha256 = hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()

    def __iter__(self):
        """Each window's ids, BOS included."""
        share = self.window - len(self.prefix)
        for start in range(0, len(self.ids), share):
            yield self.prefix + self.ids[start : start + share]

    @property
    def tokens(self):
        """How many tokens are scored."""
        return self.count * (self.window - 1)


def score(windows, logits, request):
    """The part of the response that follows from the scores.

    `logits` is asked with a window's ids and yields (logits, hidden) of its positions in order, as
    float32 arrays [rows, vocabulary] and [rows, width] (or None); what it says behind the last
    token is not looked at. The request's `keep` and `reference` are folders, see _distributions.
    """
    said = look(windows, logits, request.get("keep"), request.get("reference"), progress)
    return report(windows, said.nll, said.top1, said.kld, said.cosine)


def look(windows, logits, keep=None, reference=None, tell=lambda *_: None):
    """The Distributions of all windows; `tell` is told how far it is, as `progress` is."""
    said = Distributions(windows.ids_sha256, keep, reference)
    for number, ids in enumerate(windows):
        before = number * (windows.window - 1)
        tell(before, windows.tokens, "scoring")
        position = 1
        for rows, hidden in logits(ids):
            targets = ids[position : position + len(rows)]
            taken = None if hidden is None else hidden[: len(targets)]
            said.add(rows[: len(targets)], taken, targets)
            position += len(targets)
            tell(before + position - 1, windows.tokens)
    said.finish()
    return said


def report(windows, nll, top1, kld=None, cosine=None):
    """The part of the response that follows from one value for each scored token.

    `peak_bytes` is what this process held at most until now, model and all; null where unknown.
    """
    return {
        "ids": windows.ids,
        "ids_sha256": windows.ids_sha256,
        "bos": bool(windows.prefix),
        "window": windows.window,
        "windows": windows.count,
        "tokens": len(nll),
        "nll": nll,
        "top1": top1,
        "kld": kld,
        "cosine": cosine,
        "perplexity": math.exp(min(math.fsum(nll) / len(nll), 700.0)),
        "peak_bytes": peak_memory(),
    }


def _prefix(bos, begin):
    if bos is False:
        return []
    if begin is None and bos:
        raise WorkerError("the model has no BOS token", "Set bos to null or false.")
    return [] if begin is None else [begin]


def _front(encode, text, share, wanted):
    """The ids of `wanted` windows' shares of the text, of all of it where that is None."""
    if wanted is None:
        return encode(text)
    needed = share * int(wanted)
    ids = encode(text[: needed * CHARACTERS_PER_TOKEN])  # a long text is cut first, generously
    return ids if len(ids) >= needed else encode(text)
