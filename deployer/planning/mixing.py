"""Mixed precision: which type each part of a model gets, chosen from what rounding it costs.

The sensitivity table says, for every part and type, how many bytes the part takes and what KL
divergence the model has when that part alone is rounded. The divergence of a mix is estimated as
the sum over its parts: rounding errors of different parts hardly know of each other while they are
small. It is an estimate; the build measures the truth.

The choice starts with the smallest type everywhere and then takes, again and again, the larger type
that saves the most divergence a byte. Types above the lower convex hull of a part's (bytes,
divergence) points are left out. So every mix on the way is the best there is for its size (it is a
solution of the Lagrangian), and what is left of a budget at the end is filled with what still fits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from deployer.errors import PlanError
from deployer.quantizers import QuantizeJob
from deployer.recipe import DEFAULT_MIXED_TYPES, Quantization

HALF = "f16"
"""A part that is left as it is: it costs no divergence."""
_FEED_FORWARD = "(mlp|block_sparse_moe|feed_forward)"
_LAYERS = {
    "attention": r"self_attn\..*",
    "ffn": rf"{_FEED_FORWARD}\.(?!.*(down_proj|w2)$).*",
    "ffn_down": rf"{_FEED_FORWARD}\..*(down_proj|w2)",
}
"""Part of a block -> what its layers are called in a checkpoint, below the block."""


def measured_types(quantization: Quantization) -> dict[str, Any]:
    """What the sensitivity of a recipe's model is measured on: {types, groups?}, for the worker.

    For awq and gptq it is plain rounding to the recipe's bits and groups, which costs more than
    the tuned weights will; the order of the parts is what counts. Only blocks are quantized then.
    """
    if quantization.method == "gguf":
        mixed = quantization.mixed
        return {"types": list((mixed and mixed.types) or DEFAULT_MIXED_TYPES)}
    knobs = quantization.knobs
    bits = 4 if quantization.scheme == "w4a16" else 8
    group = "channel" if knobs["group_size"] == -1 else f"g{knobs['group_size']}"
    asymmetric = knobs.get("zero_point") or knobs.get("sym") is False
    return {"types": [f"w{bits}_{group}{'_zero' if asymmetric else ''}"], "groups": r"blk\..*"}


@dataclass(frozen=True)
class Choice:
    """A part of the model in one type: its bytes, and the divergence it costs in nats a token."""

    kind: str
    bytes: int
    kld: float


@dataclass(frozen=True)
class Part:
    """Tensors that get one type together, and the types that fit them."""

    name: str
    tensors: tuple[str, ...]
    parameters: int
    choices: tuple[Choice, ...]

    def hull(self) -> tuple[Choice, ...]:
        """The choices worth taking, smallest first: each saves less divergence a byte."""
        kept: list[Choice] = []
        for choice in sorted(self.choices, key=lambda each: (each.bytes, each.kld)):
            if kept and choice.kld >= kept[-1].kld:
                continue
            while len(kept) > 1 and _gain(kept[-2], kept[-1]) <= _gain(kept[-2], choice):
                kept.pop()
            kept.append(choice)
        return tuple(kept)


@dataclass(frozen=True)
class Sensitivity:
    """The table: parts, and what no part holds (`rest_bytes`); `parameters` counts all weights."""

    parts: tuple[Part, ...]
    rest_bytes: int
    parameters: int

    @classmethod
    def from_report(cls, report: Mapping[str, Any]) -> Sensitivity:
        """Read what the worker `measure_sensitivity` answered."""
        parts = tuple(
            Part(
                group["name"],
                tuple(group["tensors"]),
                group["parameters"],
                tuple(
                    Choice(kind, group["bytes"][kind], group["kld"][kind])
                    for kind in group["bytes"]
                ),
            )
            for group in report["groups"]
        )
        return cls(parts, report["rest"]["bytes"], report["parameters"])

    def bits_per_weight(self, size: int) -> float:
        """Of a model whose tensors take `size` bytes."""
        return 8 * size / self.parameters


@dataclass(frozen=True)
class Mix:
    """A type for each part. `bytes` is all tensors together; `kld` the estimated divergence."""

    choices: Mapping[str, Choice]
    bytes: int
    kld: float

    def types(self, table: Sensitivity) -> dict[str, str]:
        """Tensor -> type."""
        return {
            tensor: self.choices[part.name].kind for part in table.parts for tensor in part.tensors
        }

    def describe(self, table: Sensitivity) -> str:
        """In words: `6 parts q5_0, 55 iq4_nl: 4.632 bits a weight, KL divergence about 0.12`."""
        counts = Counter(choice.kind for choice in self.choices.values())
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        return (
            f"mix of {kinds}: {table.bits_per_weight(self.bytes):.3f} bits a weight, KL divergence "
            f"about {self.kld:.4f} (an estimate)"
        )

    def as_json(self, table: Sensitivity) -> dict[str, Any]:
        """{bits_per_weight, kl_divergence: estimated, types: {part: type}}."""
        return {
            "bits_per_weight": round(table.bits_per_weight(self.bytes), 4),
            "kl_divergence": round(self.kld, 6),
            "types": {name: choice.kind for name, choice in self.choices.items()},
        }


def choose_mix(
    table: Sensitivity, budget_bpw: float | None = None, max_kl_divergence: float | None = None
) -> Mix:
    """The best mix of at most `budget_bpw` bits a weight, or the smallest within the limit.

    Raises PlanError where no mix is small or good enough.
    """
    if budget_bpw is not None:
        return within_bytes(table, math.floor(budget_bpw * table.parameters / 8 + 1e-6))
    if max_kl_divergence is None:
        raise ValueError("a mix needs a budget or a limit")
    return within_divergence(table, max_kl_divergence)


def within_bytes(table: Sensitivity, budget: int) -> Mix:
    """The mix of the least divergence whose tensors take at most `budget` bytes."""
    picked, size, steps = _start(table)
    if size > budget:
        raise PlanError(
            f"the smallest mix takes {table.bits_per_weight(size):.3f} bits a weight, over the "
            f"budget of {table.bits_per_weight(budget):.3f}",
            "Raise quantization.mixed.budget_bpw, or allow smaller quantization.mixed.types.",
        )
    for name, choice in steps:
        grown = size + choice.bytes - picked[name].bytes
        # After one that did not fit, a part's later step starts from a smaller type than planned.
        if grown <= budget and choice.kld < picked[name].kld:
            picked[name], size = choice, grown
    return _mix(picked, size)


def within_divergence(table: Sensitivity, limit: float) -> Mix:
    """The smallest mix whose estimated divergence is at most `limit` nats a token."""
    picked, size, steps = _start(table)
    taken: list[tuple[str, Choice]] = []
    for name, choice in steps:
        if _total(picked) <= limit:
            break
        taken.append((name, picked[name]))
        size += choice.bytes - picked[name].bytes
        picked[name] = choice
    if _total(picked) > limit:
        raise PlanError(
            f"the best mix has an estimated KL divergence of {_total(picked):.4f}, over {limit:g}",
            "Raise quantization.mixed.max_kl_divergence, or allow larger types.",
        )
    for name, before in reversed(taken):  # the last step may have saved more than was needed
        saved = picked[name].bytes - before.bytes
        if saved > 0 and _total(picked) - picked[name].kld + before.kld <= limit:
            picked[name], size = before, size - saved
    return _mix(picked, size)


def curve(table: Sensitivity) -> list[Mix]:
    """The best mixes from the smallest to the one of least divergence, one for each step."""
    picked, size, steps = _start(table)
    mixes = [_mix(picked, size)]
    for name, choice in steps:
        size += choice.bytes - picked[name].bytes
        picked[name] = choice
        mixes.append(_mix(picked, size))
    return mixes


def ignored_layers(mix: Mix) -> tuple[str, ...]:
    """For a quantizer of checkpoints: patterns of the layers a mix leaves at 16 bits."""
    blocks: dict[str, list[str]] = {}
    for name, choice in mix.choices.items():
        head, _, number_and_part = name.partition(".")
        if choice.kind == HALF and head == "blk":
            number, _, part = number_and_part.partition(".")
            blocks.setdefault(part, []).append(number)
    return tuple(
        rf"re:.*\.layers\.({'|'.join(numbers)})\.{_LAYERS[part]}"
        for part, numbers in blocks.items()
    )


def mixed_job(job: QuantizeJob, table: Sensitivity, mix: Mix) -> QuantizeJob:
    """The job with the mix in it: types of tensors, or layers that are ignored."""
    wanted = job.quantization
    if wanted.method == "gguf":
        return replace(job, types=mix.types(table))
    ignore = (*wanted.knobs["ignore"], *ignored_layers(mix))
    return replace(job, quantization=wanted.model_copy(update={"ignore": ignore}))


def _start(
    table: Sensitivity,
) -> tuple[dict[str, Choice], int, list[tuple[str, Choice]]]:
    """The smallest mix, its bytes, and every step up from it, the most worth while first."""
    hulls = {part.name: part.hull() for part in table.parts}
    picked = {name: hull[0] for name, hull in hulls.items()}
    steps = [
        (_gain(before, after), name, after)
        for name, hull in hulls.items()
        for before, after in pairwise(hull)
    ]
    steps.sort(key=lambda step: -step[0])  # stable: along a hull the gains fall
    size = table.rest_bytes + sum(choice.bytes for choice in picked.values())
    return picked, size, [(name, choice) for _, name, choice in steps]


def _gain(before: Choice, after: Choice) -> float:
    """Divergence saved a byte."""
    return (before.kld - after.kld) / (after.bytes - before.bytes)


def _total(picked: Mapping[str, Choice]) -> float:
    return sum(choice.kld for choice in picked.values())


def _mix(picked: Mapping[str, Choice], size: int) -> Mix:
    return Mix(dict(picked), size, _total(picked))
