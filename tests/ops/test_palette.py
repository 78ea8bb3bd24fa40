"""Packed indices and the dense matrix of a palettized weight, against loops over single weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.ops.palette import GROUP, Palettized, matrix, pack_nibbles, unpack_nibbles


@pytest.mark.parametrize("where", [np, jnp])
def test_nibbles_are_packed_low_half_first_and_come_back(where):
    indices = np.random.default_rng(0).integers(0, 16, (3, 32, 10), dtype=np.uint8)
    packed = pack_nibbles(where.asarray(indices))
    assert packed.dtype == np.uint8 and packed.shape == (3, 32, 5)
    assert int(packed[1, 2, 3]) == int(indices[1, 2, 6]) + 16 * int(indices[1, 2, 7])
    np.testing.assert_array_equal(unpack_nibbles(packed), indices)


def test_a_matrix_is_scale_times_table_entry():
    rng = np.random.default_rng(1)
    outputs, inputs = 2 * GROUP, 6
    indices = rng.integers(0, 16, (outputs, inputs), dtype=np.uint8)
    tables = rng.normal(size=(2, 16)).astype(np.float16)
    scales = rng.uniform(0.5, 2, outputs).astype(np.float16)
    expected = np.zeros((inputs, outputs))
    for o in range(outputs):
        for i in range(inputs):
            expected[i, o] = float(scales[o]) * float(tables[o // 16, indices[o, i]])
    palettized = Palettized(*map(jnp.asarray, (pack_nibbles(indices), tables, scales)))
    weight_IO = jax.jit(matrix, static_argnums=1)(palettized, jnp.float32)
    np.testing.assert_array_equal(weight_IO, expected.astype(np.float32))
