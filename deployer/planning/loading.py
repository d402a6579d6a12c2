"""What the engine transformers can quantize while it loads, and where: one literal table.

Each was tried on a CPU with the releases that the toolchain locks, and on an NVIDIA H100 with the
same releases of the libraries beside transformers 5.17 (docs/transformers.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from deployer.errors import PlanError
from deployer.recipe import Recipe


@dataclass(frozen=True)
class Loading:
    """What keeps a scheme from a CPU or a GPU, as the end of a sentence; None where it runs."""

    cpu: str | None = None
    cuda: str | None = None


LOADING: dict[tuple[str, str | None], Loading] = {
    ("none", None): Loading(),
    ("bitsandbytes", "nf4"): Loading(),
    ("bitsandbytes", "int8"): Loading(),
    ("quanto", "int8"): Loading(),
    ("quanto", "float8"): Loading(cuda="its kernel is compiled with nvcc, which no toolchain has"),
    ("quanto", "int4"): Loading(),
    ("quanto", "int2"): Loading(),
    ("hqq", "int8"): Loading(),
    ("hqq", "int4"): Loading(),
    ("hqq", "int3"): Loading(),
    ("hqq", "int2"): Loading(),
    ("torchao", "int8"): Loading(),
    ("torchao", "int4"): Loading(),
}
"""(method, scheme) -> what keeps it from a device."""


def check_loading(recipe: Recipe, device: str) -> None:
    """The engine transformers can make what the recipe asks for on `device` (cpu or cuda).

    Raises PlanError with what runs there. Other engines are asked nothing.
    """
    if recipe.target.engine != "transformers":
        return
    wanted = recipe.quantization
    where = LOADING[wanted.method, wanted.scheme]
    reason = where.cpu if device == "cpu" else where.cuda
    if reason:
        place = "a CPU" if device == "cpu" else "a GPU"
        raise PlanError(
            f"{wanted.method} {wanted.scheme} does not run on {place}: {reason}",
            f"On {place} these run: {', '.join(_running(device))}.",
        )


def _running(device: str) -> list[str]:
    return [
        f"{method} {scheme}"
        for (method, scheme), where in LOADING.items()
        if scheme and (where.cpu if device == "cpu" else where.cuda) is None
    ]
