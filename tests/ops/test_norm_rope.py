"""The norm and rotary positions: by halves against float64 NumPy (values by complex numbers, gradients by differences),
by the kernel, interpreted, against halves.

Shapes: B batch, T tokens, N heads, H head, C = H / 2.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.ops import norm_rope_kernel
from pomona.ops.norm import rms_norm
from pomona.ops.rope import norm_rope, rotation

EPSILON, BASE = 1e-5, 1000.0
POSITIONS = np.array([[0, 1, 2, 0, 1], [7, 8, 9, 1000, 4095]])  # documents start at 0 again


def numbers(dtype=jnp.float32):
    """x_BTNH, weight_H and a direction like x, all exact in `dtype`."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(2, 5, 3, 8)) * 3, rng.normal(size=8), rng.normal(size=(2, 5, 3, 8))
    return [jnp.asarray(x, dtype) for x in drawn]


def by_complex_numbers(x_BTNH, weight_H):
    """The definition, in float64: dimension i and i + H/2 are a complex number, turned by its angle."""
    x_BTNH, weight_H = np.asarray(x_BTNH, np.float64), np.asarray(weight_H, np.float64)
    normed = x_BTNH / np.sqrt((x_BTNH**2).mean(-1, keepdims=True) + EPSILON) * weight_H
    half = x_BTNH.shape[-1] // 2
    angle_BTC = POSITIONS[..., None] * BASE ** (-np.arange(half) / half)
    turned = (normed[..., :half] + 1j * normed[..., half:]) * np.exp(1j * angle_BTC)[:, :, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def differences(function, x, step=1e-5):
    """The gradient of a scalar function by central differences, in float64."""
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[index] = step
        gradient[index] = (function(x + moved) - function(x - moved)) / (2 * step)
    return gradient


def by_halves(x, weight, positions=POSITIONS):
    return norm_rope(x, weight, rotation(jnp.asarray(positions), x.shape[-1], BASE), EPSILON, "split")


def by_kernel(x, weight, positions):
    cos, sin = rotation(positions, x.shape[-1], BASE)
    tables = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    return norm_rope_kernel.norm_rope(x, weight, *tables, EPSILON, interpret=True)


# float32: an angle of 4095 is rounded to 2e-4. bfloat16: eight bits, rounded by halves twice.
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-3), (jnp.bfloat16, 1 / 128)])
def test_values_by_halves(dtype, tolerance):
    x, weight, _ = numbers(dtype)
    out = by_halves(x, weight)
    expected = by_complex_numbers(x, weight)
    assert out.dtype == dtype
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-3), (jnp.bfloat16, 1 / 64)])
def test_gradients_by_halves(dtype, tolerance):
    x, weight, direction = numbers(dtype)
    gradients = jax.vjp(by_halves, x, weight)[1](direction)
    sums = lambda out: (out * np.asarray(direction, np.float64)).sum()
    expected = (
        differences(lambda x: sums(by_complex_numbers(x, weight)), x),
        differences(lambda w: sums(by_complex_numbers(x, w)), weight),
    )
    for gradient, reference in zip(gradients, expected, strict=True):
        assert gradient.dtype == dtype
        error = np.abs(np.asarray(gradient, np.float64) - reference).max()
        assert error < tolerance * np.abs(reference).max()


# Heads of the AFM models, and numbers of tokens and heads that no whole number of blocks has.
SHAPES = [(2, 256, 24, 128), (1, 512, 2, 128), (2, 300, 3, 128), (1, 5, 8, 128), (1, 259, 12, 64)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_beside_halves_in_float32(shape, dtype):
    """Of the same numbers: the kernel computes in float32 and rounds what it gives once."""
    rng = np.random.default_rng(0)
    x, weight, direction = (jnp.asarray(rng.normal(size=n), dtype) for n in (shape, shape[-1], shape))
    positions = jnp.asarray(rng.integers(0, 4096, shape[:2]))
    wide = [each.astype(jnp.float32) for each in (x, weight, direction)]
    out, gradient = jax.vjp(lambda x, w: by_kernel(x, w, positions), x, weight)
    expected, reference = jax.vjp(lambda x, w: by_halves(x, w, positions), *wide[:2])
    rounding = 2e-6 if dtype == jnp.float32 else 1 / 256
    for ours, theirs in zip((out, *gradient(direction)), (expected, *reference(wide[2])), strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        error = np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)).max()
        assert error <= rounding * np.abs(theirs).max()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_tpu_takes_the_kernel(shape):
    """Lowering refuses blocks that are no whole vectors; a gradient has the kernel forward and backward."""
    x, weight = jax.ShapeDtypeStruct(shape, jnp.bfloat16), jax.ShapeDtypeStruct(shape[-1:], jnp.float32)
    positions = jax.ShapeDtypeStruct(shape[:2], jnp.int32)

    def gradient(x, weight, positions):
        turned = lambda x, w: norm_rope(x, w, rotation(positions, shape[-1], BASE), EPSILON, "kernel")
        out, back = jax.vjp(turned, x, weight)
        return back(out)

    program = jax.jit(gradient).trace(x, weight, positions).lower(lowering_platforms=("tpu",)).as_text()
    assert sorted(re.findall(r'kernel_name = "(\w+)"', program)) == ["norm_rope", "norm_rope_backward"]


def test_the_norm_alone():
    x, weight, _ = numbers()
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + EPSILON) * np.asarray(weight, np.float64)
    np.testing.assert_allclose(rms_norm(x, weight, EPSILON), expected, atol=1e-5)
