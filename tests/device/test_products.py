"""Packed matrices and the kernels that multiply by them: against float64, and against each other bit for bit."""

import platform
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.device import library, portable
from pomona.device.layout import DeviceMatrix, from_integers, from_palette, integers, pack, packed_bytes, unpack
from pomona.ops.palette import BALANCED

SETS = library.instruction_sets()


def draw_matrix(rng, groups, inputs, bits):
    if bits == 8:
        return from_integers(rng.integers(-127, 128, (groups * 16, inputs)), rng.random(groups * 16))
    tables = rng.standard_t(3, (groups, 2**bits)).astype(np.float16)
    return from_palette(
        rng.integers(0, 2**bits, (groups * 16, inputs)).astype(np.uint8),
        tables,
        rng.random(groups * 16).astype(np.float16),
        bits,
    )


@given(st.integers(1, 4), st.integers(1, 200), st.sampled_from([2, 4, 8]), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_what_is_packed_is_unpacked(groups, inputs, bits, seed):
    indices = np.random.default_rng(seed).integers(0, 2**bits, (groups * 16, inputs)).astype(np.uint8)
    packed = pack(indices, bits)
    assert packed.shape == (groups, packed_bytes(inputs, bits))
    np.testing.assert_array_equal(unpack(packed, inputs, bits), indices)


def test_a_byte_holds_what_the_kernels_expect():
    """Byte 4 r + j of 64: the inputs j and 4 + j of output r, as device/layout.py and native/kernels.h say."""
    indices = np.random.default_rng(0).integers(0, 16, (16, 64)).astype(np.uint8)
    packed = pack(indices, 4)[0]
    for output, j in ((0, 0), (3, 2), (15, 3)):
        assert packed[4 * output + j] == indices[output, j] | indices[output, 4 + j] << 4
        assert packed[64 + 4 * output + j] == indices[output, 8 + j] | indices[output, 12 + j] << 4


@pytest.mark.parametrize("bits", [2, 4])
def test_tables_come_within_half_a_step_and_the_balanced_grid_exactly(bits):
    rng = np.random.default_rng(1)
    tables, scales = rng.normal(size=(5, 2**bits)).astype(np.float16), rng.random(80).astype(np.float16)
    indices = rng.integers(0, 2**bits, (80, 70)).astype(np.uint8)
    matrix = from_palette(indices, tables, scales, bits)
    exact = np.take_along_axis(np.repeat(tables.astype(np.float64), 16, 0), indices.astype(int), 1) * scales[:, None]
    largest = np.repeat(np.abs(tables.astype(np.float64)).max(1), 16) * scales
    assert np.all(np.abs(integers(matrix) * matrix.factors[:, None] - exact) <= largest[:, None] / 2 / 64)
    grid = np.tile(np.array(BALANCED, np.float16), (5, 1))
    matrix = from_palette(indices & 3, grid, scales, 2)
    exact = (np.array(BALANCED)[indices & 3] * scales.astype(np.float64)[:, None]).astype(np.float32)
    np.testing.assert_allclose(integers(matrix) * matrix.factors[:, None], exact, rtol=1e-7)


@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 20), st.sampled_from([2, 4, 8]), st.integers(0, 2**32))
@settings(deadline=None, max_examples=80)
def test_every_instruction_set_computes_the_same_bits(groups, sixteens, tokens, bits, seed):
    rng = np.random.default_rng(seed)
    matrix = draw_matrix(rng, groups, sixteens * 16, bits)
    x = (rng.standard_t(2, (tokens, sixteens * 16)) * 10.0 ** rng.integers(-4, 4)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = 0
    every = [library.product(matrix, x, name) for name in SETS]
    for name, found in zip(SETS, every):
        np.testing.assert_array_equal(found, every[0], err_msg=name)
    if every:
        np.testing.assert_allclose(every[0], portable.product(matrix, x), rtol=2e-5, atol=1e-5 * np.abs(every[0]).max())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("inputs", [16, 64, 208])
def test_the_product_is_that_of_rounded_vectors_in_float64(bits, inputs):
    rng = np.random.default_rng(2)
    matrix, x = draw_matrix(rng, 3, inputs, bits), rng.normal(size=(9, inputs)).astype(np.float32)
    rounded = np.empty(x.shape)
    for first in range(0, inputs, 64):
        part = x[:, first : first + 64].astype(np.float64)
        scale = np.abs(part).max(axis=1, keepdims=True) / 127
        rounded[:, first : first + 64] = np.rint(part / scale) * scale
    expected = rounded @ (integers(matrix).astype(np.float64) * matrix.factors[:, None]).T
    found = library.product(matrix, x) if SETS else portable.product(matrix, x)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


def test_the_extremes_do_not_overflow():
    """All weights and all numbers at 127 and -127: what AVX2's 16-bit sums would not hold with an unsigned weight."""
    wide = 2048
    for sign in (1, -1):
        matrix = from_integers(np.full((16, wide), 127 * sign), np.ones(16))
        for name in SETS:
            found = library.product(matrix, np.full((3, wide), 127.0), name)
            np.testing.assert_array_equal(found, sign * 127.0 * 127 * wide, err_msg=name)
    table = np.full((1, 16), -1.0, np.float16)
    matrix = from_palette(np.zeros((16, wide), np.uint8), table, np.ones(16, np.float16), 4)
    assert isinstance(matrix, DeviceMatrix) and matrix.tables.min() >= -127


@pytest.mark.skipif(not SETS or platform.machine() != "x86_64", reason="of x86 under Linux")
def test_a_set_is_named_where_the_processor_has_its_instructions():
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    needs = {
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx2", "bmi2"},
        "avxvnni": {"avx_vnni", "avx2", "bmi2"},
        "avx2": {"avx2", "bmi2"},
        "portable": set(),
    }
    assert list(SETS) == [name for name, needed in needs.items() if needed <= flags]


def test_the_library_is_there_where_a_compiler_is():
    assert bool(SETS) == bool(shutil.which("g++") or shutil.which("clang++"))
    assert not SETS or SETS[-1] == "portable"
