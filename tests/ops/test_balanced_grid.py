"""The 2-bit grid against its formula in float64, and its gradients against those written by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from pomona.ops.balanced_grid import snap

GRID = np.array([-1.5, -0.5, 0.5, 1.5])
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(48, 20)).astype(np.float32)
SCALE = RNG.uniform(0.3, 1.5, (1, 20)).astype(np.float32)


def test_every_weight_goes_to_the_nearest_point_of_its_rows_grid():
    found, stored = np.asarray(snap(WEIGHT, SCALE)), SCALE.astype(np.float16).astype(np.float64)
    distance = np.abs(WEIGHT[..., None] - stored[..., None] * GRID)
    nearest = stored * GRID[distance.argmin(-1)]
    np.testing.assert_array_equal(found, nearest.astype(np.float32))
    formula = stored * (np.clip(np.round(WEIGHT / stored + 0.5), -1, 2) - 0.5)
    np.testing.assert_array_equal(found, formula.astype(np.float32))
    np.testing.assert_array_equal(snap(found, SCALE), found)


def test_the_gradients_pass_the_rounding_and_stop_at_the_clamp():
    by = RNG.normal(size=WEIGHT.shape)
    loss = lambda weight, scale: jnp.sum(snap(weight, scale) * by)
    by_weight, by_scale = jax.jit(jax.grad(loss, argnums=(0, 1)))(WEIGHT, SCALE)
    ratio = WEIGHT.astype(np.float64) / SCALE.astype(np.float16)
    inside, point = np.abs(ratio) < 2, GRID[np.abs(ratio[..., None] - GRID).argmin(-1)]
    assert 0 < (~inside).sum() < inside.sum()
    np.testing.assert_allclose(by_weight, by * inside, rtol=1e-6)
    expected = (by * np.where(inside, point - ratio, point)).sum(0, keepdims=True)
    np.testing.assert_allclose(by_scale, expected, rtol=1e-4, atol=1e-4)
