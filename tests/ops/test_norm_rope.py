"""The norm and rotary positions, both ways, against float64 NumPy: values by complex numbers, gradients by differences.

Shapes: B batch, T tokens, N heads, H head, C = H / 2.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def ours(way, x, weight):
    return norm_rope(x, weight, rotation(jnp.asarray(POSITIONS), x.shape[-1], BASE), EPSILON, way)


@pytest.mark.parametrize("way", ["split", "product"])
# float32: an angle of 4095 is rounded to 2e-4. bfloat16: eight bits, rounded once by a product and twice by halves.
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-3), (jnp.bfloat16, 1 / 128)])
def test_values(way, dtype, tolerance):
    x, weight, _ = numbers(dtype)
    out = ours(way, x, weight)
    expected = by_complex_numbers(x, weight)
    assert out.dtype == dtype
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("way", ["split", "product"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-3), (jnp.bfloat16, 1 / 64)])
def test_gradients(way, dtype, tolerance):
    x, weight, direction = numbers(dtype)
    gradients = jax.vjp(lambda x, w: ours(way, x, w), x, weight)[1](direction)
    sums = lambda out: (out * np.asarray(direction, np.float64)).sum()
    expected = (
        differences(lambda x: sums(by_complex_numbers(x, weight)), x),
        differences(lambda w: sums(by_complex_numbers(x, w)), weight),
    )
    for gradient, reference in zip(gradients, expected, strict=True):
        assert gradient.dtype == dtype
        error = np.abs(np.asarray(gradient, np.float64) - reference).max()
        assert error < tolerance * np.abs(reference).max()


def test_the_two_ways_agree_in_float32():
    x, weight, direction = numbers()
    split, product = (jax.vjp(lambda x, w: ours(way, x, w), x, weight) for way in ("split", "product"))
    np.testing.assert_allclose(product[0], split[0], atol=2e-6)
    for one, other in zip(product[1](direction), split[1](direction), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(("dtype", "precision"), [(jnp.float32, "HIGHEST"), (jnp.bfloat16, "DEFAULT")])
def test_the_product_is_exact_on_a_tpu_too(dtype, precision):
    """By default a TPU rounds float32 operands to bfloat16, in the backward pass as well."""
    x, weight, direction = numbers(dtype)
    gradient = jax.jit(lambda x, dy: jax.vjp(lambda x: ours("product", x, weight), x)[1](dy))
    program = gradient.trace(x, direction).lower(lowering_platforms=("tpu",)).as_text()
    products = re.findall(r"dot_general .*precision = \[(\w+), (\w+)\]", program)
    assert products == [(precision, precision)] * 2


def test_the_norm_alone():
    x, weight, _ = numbers()
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + EPSILON) * np.asarray(weight, np.float64)
    np.testing.assert_allclose(rms_norm(x, weight, EPSILON), expected, atol=1e-5)
