"""Uniform quantization: weights on a grid of equal steps. Small, slow and plain on purpose.

    code = clip(floor(value / scale + 1/2) + zero)      value' = (code - zero) * scale

All values of a group share one `scale` (and one `zero`): all of a tensor, a row (an output
channel), or some neighbours in a row. Two forms:

- symmetric, "abs-max": the codes are -127 … 127 (for 8 bits), zero is 0, and the largest magnitude
  gets the code 127;
- asymmetric, "min-max": the codes are -128 … 127, the smallest value gets -128 and the largest 127;
  `zero` is the code of 0.0, which is always on the grid, for padding and pruned weights are zero.

[1.2, 0.3, -0.1, -0.8] in 8 bits is [127, 32, -11, -85] in the first form, [127, 12, -39, -128] in
the second. How far the grid reaches is found in three ways: over all values; over a percentile of
them, so that a few outliers do not make all steps coarse; or where the clipped and rounded values
are distributed most like the true ones (KL divergence, "entropy calibration").
"""

from dataclasses import dataclass

import numpy as np

BINS = 2048
"""Of the histogram of magnitudes that entropy calibration looks at."""


@dataclass(frozen=True)
class Grid:
    """Where the values of an array can lie; `scale` and `zero` are [groups, 1].

    Codes go from `low` to `high`; `members` is the number of values in a group.
    """

    scale: np.ndarray
    zero: np.ndarray
    low: int
    high: int
    members: int


def fit(values, bits=8, symmetric=True, group="tensor", reach="min-max", percentile=99.9):
    """The Grid for `values`, an array [rows, width] or [width].

    `group` is "tensor", "channel" (a row) or a number of neighbours that divides the width. `reach`
    is "min-max", "percentile" or "entropy". Raises ValueError where a value is not finite or the
    groups do not fit.
    """
    values = np.asarray(values, np.float64)
    if not values.size or not np.isfinite(values).all():
        raise ValueError("only finite values can be quantized")
    grouped = values.reshape(-1, _members(values, group))
    least, most = _reach(grouped, reach, percentile, bits)
    top = 2 ** (bits - 1) - 1
    if symmetric:
        scale = _step(np.maximum(np.abs(least), np.abs(most)) / top)
        return Grid(scale, np.zeros_like(scale), -top, top, grouped.shape[1])
    least, most = np.minimum(least, 0.0), np.maximum(most, 0.0)
    scale = _step((most - least) / (2 * top + 1))
    return Grid(scale, -top - 1 - _nearest(least / scale), -top - 1, top, grouped.shape[1])


def quantize(values, grid):
    """Codes (int32, the shape of `values`) of the nearest points of the grid; ties go up."""
    values = np.asarray(values, np.float64)
    codes = _nearest(values.reshape(-1, grid.members) / grid.scale) + grid.zero
    return np.clip(codes, grid.low, grid.high).astype(np.int32).reshape(values.shape)


def dequantize(codes, grid):
    """The values (float64) that the codes stand for."""
    grouped = np.asarray(codes, np.float64).reshape(-1, grid.members)
    return ((grouped - grid.zero) * grid.scale).reshape(np.shape(codes))


def rounded(values, **settings):
    """`values` as they come back from `fit`, `quantize` and `dequantize`."""
    grid = fit(values, **settings)
    return dequantize(quantize(values, grid), grid)


def error(values, restored):
    """{mse, max, snr_db} of `restored`: mean square and largest error, signal to noise in dB."""
    values = np.asarray(values, np.float64)
    difference = values - np.asarray(restored, np.float64)
    mse = float(np.mean(difference**2))
    power = float(np.mean(values**2))
    snr = float("inf") if mse == 0 else 10 * float(np.log10(max(power, 1e-300) / mse))
    return {"mse": mse, "max": float(np.abs(difference).max()), "snr_db": snr}


def bits_per_weight(bits, group, symmetric=True):
    """What a weight takes with its share of a 16-bit scale and a zero point of `bits`."""
    return bits + (16 if symmetric else 16 + bits) / group


def _members(values, group):
    width = values.shape[-1]
    if group == "tensor":
        return values.size
    members = width if group == "channel" else int(group)
    if members < 1 or width % members:
        raise ValueError(f"groups of {group} do not divide a row of {width} values")
    return members


def _nearest(values):
    """Round; ties go up, so that a whole number added before or after makes no difference."""
    return np.floor(values + 0.5)


def _step(scale):
    """A usable scale: groups of zeros have one too."""
    return np.where(scale > 0, scale, 1.0)


def _reach(grouped, reach, percentile, bits):
    """(least, most) of each group, as arrays [groups, 1]: the ends of its grid."""
    least = grouped.min(axis=1, keepdims=True)
    most = grouped.max(axis=1, keepdims=True)
    if reach == "min-max":
        return least, most
    if reach == "percentile":
        ends = np.percentile(np.abs(grouped), percentile, axis=1, keepdims=True)
    elif reach == "entropy":
        ends = np.array([[_entropy_end(np.abs(row), bits)] for row in grouped])
    else:
        raise ValueError(f"there is no reach {reach!r}: min-max, percentile or entropy")
    return np.maximum(least, -ends), np.minimum(most, ends)


def _entropy_end(magnitudes, bits):
    """The magnitude to clip at: where what is left is distributed most like the original."""
    counts, edges = np.histogram(magnitudes, bins=BINS, range=(0.0, magnitudes.max() or 1.0))
    levels = 2 ** (bits - 1)
    candidates = range(levels, BINS + 1, max(1, levels // 8))
    costs = [(_divergence(counts, kept, levels), -kept) for kept in candidates]
    return float(edges[-min(costs)[1]])


def _divergence(counts, kept, levels):
    """KL divergence of the true distribution from one cut at bin `kept`, on `levels` steps.

    What lies beyond the cut is in its last bin on the true side, as it is when it is clipped, and
    missing on the other. Bins of a step share its count, except those that are empty.
    """
    true = counts[:kept].astype(np.float64)
    steps = np.arange(kept) * levels // kept
    filled = np.bincount(steps, weights=true > 0, minlength=levels)
    shared = np.bincount(steps, weights=true, minlength=levels) / np.maximum(filled, 1)
    coarse = np.where(true > 0, shared[steps], 0.0)
    true[-1] += counts[kept:].sum()
    if not coarse.sum():
        return float("inf")
    p, q = true / true.sum(), coarse / coarse.sum()
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))))
