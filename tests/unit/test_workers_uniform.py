"""Uniform quantization: the worked examples, and what holds for any values."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

WORKERS = Path(__file__).parents[2] / "deployer" / "workers"
EXAMPLE = [1.2, 0.3, -0.1, -0.8]


def _load():
    sys.path.insert(0, str(WORKERS))
    try:
        return importlib.import_module("_uniform")
    finally:
        sys.path.remove(str(WORKERS))


uniform = _load()

weights = st.lists(
    st.floats(-1e4, 1e4, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-6),
    min_size=8,
    max_size=64,
).map(lambda values: np.array(values[: len(values) // 8 * 8]).reshape(-1, 8))
forms = st.fixed_dictionaries(
    {
        "bits": st.integers(2, 8),
        "symmetric": st.booleans(),
        "group": st.sampled_from(["tensor", "channel", 2, 4, 8]),
    }
)


def test_the_worked_examples_hold():
    for symmetric, codes in ((True, [127, 32, -11, -85]), (False, [127, 12, -39, -128])):
        grid = uniform.fit(EXAMPLE, bits=8, symmetric=symmetric)
        assert uniform.quantize(EXAMPLE, grid).tolist() == codes


def test_the_worked_examples_come_back_within_half_a_step():
    for symmetric, step in ((True, 1.2 / 127), (False, 2.0 / 255)):
        restored = uniform.rounded(EXAMPLE, symmetric=symmetric)
        assert np.abs(restored - EXAMPLE).max() <= step / 2 * (1 + 1e-9)


@given(weights, forms)
def test_the_error_is_at_most_half_a_step(values, form):
    grid = uniform.fit(values, **form)
    error = np.abs(uniform.dequantize(uniform.quantize(values, grid), grid) - values)
    bound = 0.5 if form["symmetric"] else 1.0  # a rounded zero point may push one end off the grid
    assert (error.reshape(-1, grid.members) <= grid.scale * bound * (1 + 1e-9)).all()


@given(weights, forms)
def test_codes_are_within_their_bits(values, form):
    codes = uniform.quantize(values, uniform.fit(values, **form))
    top = 2 ** (form["bits"] - 1) - 1
    assert codes.max() <= top
    assert codes.min() >= (-top if form["symmetric"] else -top - 1)


@given(weights, forms)
def test_rounding_what_was_rounded_changes_nothing(values, form):
    grid = uniform.fit(values, **form)
    codes = uniform.quantize(values, grid)
    assert (uniform.quantize(uniform.dequantize(codes, grid), grid) == codes).all()


@given(weights, forms)
def test_zero_stays_zero(values, form):
    grid = uniform.fit(values, **form)
    zeros = np.zeros_like(values)
    assert (uniform.dequantize(uniform.quantize(zeros, grid), grid) == 0).all()


@given(weights, st.integers(2, 8), st.booleans())
def test_larger_values_have_no_smaller_codes(values, bits, symmetric):
    grid = uniform.fit(values, bits=bits, symmetric=symmetric)
    codes = uniform.quantize(np.sort(values, axis=None), grid)
    assert (np.diff(codes) >= 0).all()


@given(weights, forms, st.integers(-10, 10))
def test_codes_do_not_depend_on_the_unit(values, form, exponent):
    scaled = values * 2.0**exponent
    codes = uniform.quantize(values, uniform.fit(values, **form))
    assert (uniform.quantize(scaled, uniform.fit(scaled, **form)) == codes).all()


@given(weights, st.integers(2, 8), st.booleans())
def test_a_group_as_wide_as_the_row_is_the_channel(values, bits, symmetric):
    row = uniform.rounded(values, bits=bits, symmetric=symmetric, group="channel")
    group = uniform.rounded(values, bits=bits, symmetric=symmetric, group=8)
    assert (row == group).all()


@given(weights, st.integers(2, 8))
def test_smaller_groups_never_have_a_coarser_grid(values, bits):
    scales = [
        np.repeat(uniform.fit(values, bits=bits, group=group).scale, members, axis=0).reshape(-1)
        for group, members in ((4, 4), ("channel", 8), ("tensor", values.size))
    ]
    used = np.abs(values).reshape(-1, 4).max(axis=1).repeat(4) > 0  # zeros have any scale
    for fine, coarse in itertools.pairwise(scales):
        assert (fine <= coarse)[used].all()


@settings(max_examples=25)
@given(weights, st.sampled_from(["percentile", "entropy"]), st.booleans())
def test_a_clipped_range_is_no_wider_than_all_values(values, reach, symmetric):
    assume(np.abs(values).max() > 0)
    clipped = uniform.fit(values, symmetric=symmetric, reach=reach)
    assert (clipped.scale <= uniform.fit(values, symmetric=symmetric).scale * (1 + 1e-9)).all()


@pytest.mark.parametrize("reach", ["percentile", "entropy"])
def test_outliers_do_not_make_all_steps_coarse(reach):
    values = np.random.default_rng(1).normal(size=(8, 1024))
    values[0, 0] = 60.0
    bulk = np.abs(values) < 5
    plain = uniform.rounded(values, bits=4)
    clipped = uniform.rounded(values, bits=4, reach=reach)
    before = uniform.error(values[bulk], plain[bulk])["mse"]
    assert uniform.error(values[bulk], clipped[bulk])["mse"] < before / 4


def test_the_error_is_told_in_three_ways():
    found = uniform.error([3.0, 4.0], [3.0, 3.0])
    assert found == {"mse": 0.5, "max": 1.0, "snr_db": pytest.approx(10 * np.log10(12.5 / 0.5))}
    assert uniform.error([1.0], [1.0])["snr_db"] == float("inf")


def test_bits_a_weight_count_scales_and_zero_points():
    assert uniform.bits_per_weight(4, 64) == 4.25
    assert uniform.bits_per_weight(4, 128, symmetric=False) == 4 + 20 / 128


@pytest.mark.parametrize(
    ("values", "form", "why"),
    [
        ([1.0, float("nan")], {}, "finite"),
        ([], {}, "finite"),
        ([[1.0, 2.0, 3.0]], {"group": 2}, "do not divide"),
        ([1.0], {"reach": "hope"}, "no reach"),
    ],
)
def test_what_cannot_be_quantized_is_refused(values, form, why):
    with pytest.raises(ValueError, match=why):
        uniform.fit(values, **form)
