"""Do the numbers divide: groups of input channels, and the shares of tensor parallelism."""

from __future__ import annotations

from collections.abc import Sequence

from deployer.errors import PlanError
from deployer.planning.shape import Linear, ModelShape
from deployer.recipe import Quantization

GROUP_SIZES = (128, 64, 32)
"""What vLLM's 4- and 8-bit kernels know (marlin_utils.py, MARLIN_SUPPORTED_GROUP_SIZES); -1, one
group for a whole row, is the fourth."""


def check_group_size(
    quantization: Quantization, shape: ModelShape, tensor_parallel: int = 1
) -> None:
    """The group size divides the inputs of every quantized layer, on each GPU.

    Raises PlanError that names the layers and widths, and the group sizes that fit.
    """
    wanted = quantization.knobs.get("group_size")
    if wanted is None or wanted == -1:
        return
    ignore = quantization.knobs.get("ignore", ())
    linears = [linear for linear in shape.linears if linear.kept(ignore)]
    misfits = _misfits(linears, wanted, tensor_parallel)
    if not misfits:
        return
    share = f" on each of {tensor_parallel} GPUs" if tensor_parallel > 1 else ""
    raise PlanError(
        f"group_size {wanted} does not divide {_widths(misfits, tensor_parallel)}{share}",
        _what_fits(quantization, linears, tensor_parallel),
    )


def check_shares(shape: ModelShape, tensor_parallel: int, pipeline_parallel: int = 1) -> None:
    """The model can be cut for that many GPUs; raises PlanError with the numbers that can be.

    vLLM gives every GPU whole attention heads, or copies a key-value head to several GPUs.
    """
    if tensor_parallel > 1 and not shares_evenly(shape, tensor_parallel):
        fit = [count for count in range(1, 65) if shares_evenly(shape, count)]
        raise PlanError(
            f"{tensor_parallel} GPUs cannot share {shape.heads} attention heads, {shape.kv_heads} "
            f"key-value heads and {shape.intermediate} feed-forward channels evenly",
            f"serve.vllm.tensor_parallel may be {_either(fit)} for this model.",
        )
    if pipeline_parallel > shape.layers:
        raise PlanError(
            f"{pipeline_parallel} groups of GPUs cannot share {shape.layers} layers",
            f"Set serve.vllm.pipeline_parallel to {shape.layers} at most.",
        )


def fitting_group_sizes(linears: Sequence[Linear], tensor_parallel: int) -> list[int]:
    """The known group sizes that divide all inputs, largest first."""
    return [size for size in GROUP_SIZES if not _misfits(linears, size, tensor_parallel)]


def _misfits(linears: Sequence[Linear], size: int, tensor_parallel: int) -> list[Linear]:
    return [linear for linear in linears if _inputs(linear, tensor_parallel) % size]


def _inputs(linear: Linear, tensor_parallel: int) -> float:
    """Input channels one GPU has; a fraction where they cannot be shared evenly."""
    return linear.inputs / (tensor_parallel if linear.split == "inputs" else 1)


def _widths(misfits: Sequence[Linear], tensor_parallel: int) -> str:
    """`the 576 inputs of q_proj, k_proj and the 1536 of down_proj`."""
    by_width: dict[float, list[str]] = {}
    for linear in misfits:
        names = by_width.setdefault(_inputs(linear, tensor_parallel), [])
        if linear.name not in names:
            names.append(linear.name)
    parts = [f"the {width:g} inputs of {', '.join(names)}" for width, names in by_width.items()]
    return " and ".join(parts)


def _what_fits(quantization: Quantization, linears: Sequence[Linear], tensor_parallel: int) -> str:
    fit = fitting_group_sizes(linears, tensor_parallel)
    if fit:
        verb = "fits" if len(fit) == 1 else "fit"
        sizes = " and ".join(map(str, fit))
        return f"{sizes} {verb}: --set quantization.group_size={fit[0]}"
    if quantization.while_loading:
        return "Choose a scheme without groups, for example method bitsandbytes."
    if quantization.tool != "autoawq":
        return "One scale for a whole row fits always: --set quantization.group_size=-1"
    return "Name the layers in quantization.ignore, so that they stay at 16 bits."


def shares_evenly(shape: ModelShape, count: int) -> bool:
    heads_fit = shape.heads % count == 0
    keys_fit = shape.kv_heads % count == 0 or count % shape.kv_heads == 0
    cut = (linear for linear in shape.linears if linear.name != "lm_head")  # which vLLM pads
    widths_fit = all(
        (linear.inputs if linear.split == "inputs" else linear.outputs) % count == 0
        for linear in cut
        if linear.name not in ("k_proj", "v_proj")
    )
    return heads_fit and keys_fit and widths_fit


def _either(numbers: Sequence[int]) -> str:
    words = [str(number) for number in numbers]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]
