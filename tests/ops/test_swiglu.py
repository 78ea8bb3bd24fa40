"""The units of the feed-forward block beside NumPy in float64, and their gradients beside autodiff's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.ops.swiglu import swiglu


def drawn(dtype, shape=(3, 5, 8)):
    keys = jax.random.split(jax.random.key(0), 3)
    return [4 * jax.random.normal(key, shape).astype(dtype) for key in keys]


def by_hand(gate, up, d_units):
    """(units, d_gate, d_up), in float64."""
    gate, up, d_units = (np.asarray(x, np.float64) for x in (gate, up, d_units))
    sigmoid = 1 / (1 + np.exp(-gate))
    slope = sigmoid * (1 + gate * (1 - sigmoid))
    return gate * sigmoid * up, d_units * up * slope, d_units * gate * sigmoid


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_values_and_gradients_are_those_of_the_formula(dtype, tolerance):
    gate, up, d_units = drawn(dtype)
    units, transpose = jax.vjp(swiglu, gate, up)
    found = (units, *transpose(d_units))
    assert {x.dtype for x in found} == {jnp.dtype(dtype)}
    for mine, exact in zip(found, by_hand(gate, up, d_units)):
        np.testing.assert_allclose(np.asarray(mine, np.float64), exact, rtol=tolerance, atol=4 * tolerance)


def test_extreme_gates_have_finite_gradients():
    gate, one = jnp.array([-1e30, -100.0, 0.0, 100.0, 1e30]), jnp.ones(5)
    d_gate, d_up = jax.vjp(swiglu, gate, one)[1](one)
    np.testing.assert_array_equal(d_gate, [0, 0, 0.5, 1, 1])
    assert np.isfinite(d_up).all()


def test_only_its_arguments_are_kept_and_both_gradients_are_made_behind_one_barrier():
    gate, up, d_units = drawn("float32")
    transpose = jax.vjp(swiglu, gate, up)[1]
    kept = [leaf for leaf in jax.tree.leaves(transpose) if hasattr(leaf, "shape") and leaf.shape == gate.shape]
    assert len(kept) == 2
    program = jax.make_jaxpr(transpose)(d_units)
    (barrier,) = [each for each in program.eqns if each.primitive.name == "optimization_barrier"]
    assert barrier.outvars == program.jaxpr.outvars
