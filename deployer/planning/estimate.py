"""What an estimate of memory is made of: parts that keep their arithmetic, and the bits of weights.

Estimates come from the model's dimensions before anything is downloaded. Sizes are bytes, shown
in GB of 10^9. A bundle is checked again, with its real sizes, when it is served.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from deployer.errors import PlanError
from deployer.planning.shape import ModelShape
from deployer.recipe import Quantization

BYTES_AT_16_BITS = 2
_SCALE_BITS = 16
_NF4_BITS = 4 + 32 / 64  # a 32-bit scale for each block of 64
_DOUBLE_NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # 8-bit scales, and one for 256 of them
_QUANTO_GROUP = 128
_MIXED_BITS = 6.0  # where a mix has no budget: known when it is chosen


@dataclass(frozen=True)
class Part:
    """One part of an estimate: what it is, its bytes, and the arithmetic in words."""

    what: str
    size: int
    arithmetic: str

    def __str__(self) -> str:
        return f"{self.what} {gb(self.size)} ({self.arithmetic})"


@dataclass(frozen=True)
class MemoryEstimate:
    """What `purpose` takes of one place, "this machine's memory" or "each GPU", and what is there.

    `there` is None where the place is not on this machine. `notes` are further sentences.
    """

    purpose: str
    place: str
    parts: tuple[Part, ...]
    there: int | None
    notes: tuple[str, ...] = ()

    @property
    def needed(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)

    @property
    def fits(self) -> bool:
        """Whether it fits; True where nothing is known of the place."""
        return self.there is None or self.needed <= self.there

    def __str__(self) -> str:
        has = "" if self.there is None else f" of {gb(self.there)}"
        sums = " + ".join(map(str, self.parts))
        notes = "".join(f"; {note}" for note in self.notes)
        return f"{self.purpose} takes about {gb(self.needed)}{has} of {self.place}: {sums}{notes}"

    def require(self, hint: str) -> None:
        """Raise PlanError with the arithmetic unless it fits."""
        if not self.fits:
            sums = " + ".join(map(str, self.parts))
            raise PlanError(
                f"{self.purpose} takes about {gb(self.needed)} of {self.place}, and there are "
                f"{gb(self.there or 0)}: {sums}",
                hint,
            )

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "needed": self.needed, "fits": self.fits}


def weights_part(
    quantization: Quantization,
    shape: ModelShape | None,
    size_bytes: int | None,
    bytes_per_weight: int = BYTES_AT_16_BITS,
) -> Part | None:
    """The finished weights in memory; None where neither shape nor size of the source is known.

    `size_bytes` is the size of the source's weights; `bytes_per_weight` is what a weight takes
    that is not quantized.
    """
    if quantization.method == "gguf" or shape is None:
        whole = size_bytes or (shape.parameters * BYTES_AT_16_BITS if shape else None)
        return None if whole is None else _by_size(quantization, whole, bytes_per_weight)
    ignore = quantization.knobs.get("ignore", ("lm_head",))
    small = sum(linear.weights * linear.kept(ignore) for linear in shape.linears)
    small = small if quantization.method != "none" else 0
    rest = shape.parameters - small
    bits = bits_per_weight(quantization)
    sums = [f"{counted(small)} x {bits:.4g} bits"] if small else []
    sums.append(f"{counted(rest)} x {8 * bytes_per_weight} bits")
    return Part("weights", round(small * bits / 8) + rest * bytes_per_weight, " and ".join(sums))


def _by_size(quantization: Quantization, whole: int, bytes_per_weight: int) -> Part:
    """Weights by the size of the 16-bit ones alone, as if all of them were quantized."""
    if quantization.method == "none":
        times = bytes_per_weight // BYTES_AT_16_BITS
        return Part("weights", whole * times, "as they are" if times == 1 else "at 32 bits")
    bits = bits_per_weight(quantization)
    return Part("weights", round(whole * bits / 16), f"{gb(whole)} at about {bits:.3g} of 16 bits")


def bits_per_weight(quantization: Quantization) -> float:
    """About how many bits a quantized weight takes, the scales and zero points of its group too."""
    if quantization.method == "none":
        return 16.0
    scheme = str(quantization.scheme)
    if quantization.method == "gguf":
        mixed = quantization.mixed
        return (mixed.budget_bpw or _MIXED_BITS) if mixed else nominal_bits(scheme)
    if quantization.while_loading:
        return _loaded_bits(quantization)
    width = 4 if scheme == "w4a16" else 8
    knobs = quantization.knobs
    group = int(knobs["group_size"])
    if group == -1:  # one scale a row: nothing beside thousands of weights
        return float(width)
    zero = width if knobs.get("zero_point") or knobs.get("sym") is False else 0
    return width + (_SCALE_BITS + zero) / group


def _loaded_bits(quantization: Quantization) -> float:
    """The same for weights that are quantized while they are loaded."""
    knobs, scheme = quantization.knobs, str(quantization.scheme)
    if scheme == "nf4":
        return _DOUBLE_NF4_BITS if knobs["double_quant"] else _NF4_BITS
    width = 8.0 if scheme == "float8" else float(scheme.removeprefix("int"))
    group = knobs.get("group_size", _QUANTO_GROUP if width < 8 else -1)
    return width if group == -1 else width + 2 * _SCALE_BITS / group


def nominal_bits(scheme: str) -> float:
    """About how many bits a weight takes in a llama.cpp type: its digit, and half a bit of scale.

    For estimates before a build only; a bundle has its measured bits per weight.
    """
    digits = "".join(character for character in scheme.split("_")[0] if character.isdigit())
    width = float(digits or 16)
    return width if width >= 16 else width + 0.5


def gb(size: float) -> str:
    """Bytes as people read them: `16.1 GB`, and small ones with two digits."""
    value = size / 1e9
    return f"{value:.1f} GB" if value >= 1 else f"{value:.2f} GB"


def counted(weights: int) -> str:
    """A number of weights as people read it: `8.0 G`, `134.5 M`."""
    return f"{weights / 1e9:.1f} G" if weights >= 1e9 else f"{weights / 1e6:.1f} M"
