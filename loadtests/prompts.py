"""Prompts of a wanted length, the same for the same seed, each with a nonce in front."""

from __future__ import annotations

import hashlib
import random
import re

WORDS = re.findall(
    r"\w+",
    """
river lamp window garden bread silver mountain letter harbour candle forest bridge winter market
engine feather island copper school thunder blanket compass orchard mirror wagon shadow kitchen
planet basket meadow whistle castle button ladder ocean pepper rocket saddle teacher umbrella
valley walnut yellow anchor bottle circle desert eagle finger guitar hammer iron jacket kettle
lemon morning needle office pencil quarter rabbit summer table uncle velvet water autumn bicycle
cloud doctor evening flower glass honey ice journey knight lion moon night orange paper queen
rain stone train voice wheat apple bird coat door earth fire gold horse ink key leaf milk nest
owl park road salt tree wall wind wood clock drum face hand king lake map nail pearl ring ship
""",
)

INSTRUCTION = "Write a short story that uses these words:"


def nonce(*parts: object) -> str:
    """Eight characters that no other request has, so that no prefix cache helps."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:8]


def make(words: int, seed: object, mark: str) -> str:
    """A request for a story with `words` words; `seed` picks the words, `mark` goes in front."""
    source = random.Random(str(seed))
    chosen = ", ".join(source.choice(WORDS) for _ in range(words))
    return f"[{mark}] {INSTRUCTION} {chosen}."


def of_pool(number: int, words: int, text: str, run_id: str) -> str:
    """Prompt `number` of the few that a run with a warm cache sends again and again.

    It is `text`, or made up of `words` words where there is none.
    """
    mark = nonce(run_id, "pool", number)
    return f"[{mark}] {text}" if text else make(words, f"pool/{number}", mark)


def prefixed(words: int, mark: str) -> str:
    """A system prompt of `words` words, the same for every request with the same `mark`."""
    source = random.Random(f"prefix/{mark}")
    return f"[{mark}] Facts to remember: " + ", ".join(source.choice(WORDS) for _ in range(words))


def of_blocks(blocks: tuple[int, ...], words_each: int, words: int, mark: str) -> str:
    """A prompt of `words` words out of numbered blocks of `words_each` words.

    Prompts with the same `mark` whose first blocks have the same numbers begin with the same text,
    as the requests of a trace did.
    """
    chosen: list[str] = []
    for block in blocks:
        source = random.Random(f"block/{block}")
        chosen += (source.choice(WORDS) for _ in range(words_each))
    return f"[{mark}] {INSTRUCTION} " + ", ".join(chosen[:words])
