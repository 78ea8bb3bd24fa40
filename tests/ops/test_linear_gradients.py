"""`linear` and its hand-written gradients against float64 NumPy, and the optimized program it is there for."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.ops.linear import linear


@pytest.mark.parametrize("leading", [(10,), (2, 5), (2, 1, 5)])
def test_values_and_gradients_are_those_of_the_contraction(leading):
    rng = np.random.default_rng(0)
    x, weight, dy = (rng.standard_normal(shape) for shape in ((*leading, 24), (24, 16), (*leading, 16)))
    flat_x, flat_dy = x.reshape(10, 24), dy.reshape(10, 16)

    y, pull = jax.vjp(linear, jnp.float32(x), jnp.float32(weight))
    dx, dweight = pull(jnp.float32(dy))
    np.testing.assert_allclose(y, (flat_x @ weight).reshape(dy.shape), atol=1e-5)
    np.testing.assert_allclose(dx, (flat_dy @ weight.T).reshape(x.shape), atol=1e-5)
    np.testing.assert_allclose(dweight, flat_x.T @ flat_dy, atol=1e-5)


def test_no_product_of_the_backward_pass_contracts_two_columns():
    x, weight = jnp.ones((256, 64)), jnp.ones((64, 96))
    gradient = jax.jit(jax.grad(lambda w, x: jnp.sum(linear(x, w) ** 2)))
    program = gradient.lower(weight, x).compile().as_text()
    assert not re.search(r"lhs_contracting_dims=\{0\}.*rhs_contracting_dims=\{0\}", program)
    plain = jax.jit(jax.grad(lambda w, x: jnp.sum((x @ w) ** 2))).lower(weight, x).compile().as_text()
    assert re.search(r"contracting_dims=\{0\}", plain), "XLA no longer makes such products; is `linear` still needed?"
