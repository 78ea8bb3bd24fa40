"""Soft-Top-K against bisection in float64, its gradient against that of the bisected mask by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.ops.soft_top_k import ranks, soft_top_k

SIZES = (3, 37)
MASK = jax.jit(soft_top_k)
GRADIENTS = jax.jit(jax.grad(lambda s, k, t, w: jnp.sum(soft_top_k(s, k, t) * w), argnums=(0, 1, 2)))


def bisected(scores, budget, temperature):
    """The definition, in float64: `a` is moved until the sum is the budget."""
    scores = np.asarray(scores, np.float64)
    if budget == len(scores):
        return np.ones(len(scores))
    ratios = (scores - np.sort(scores)[-int(np.ceil(budget))]) / temperature
    mask = lambda a: np.exp(np.minimum(0.0, ratios + a))
    low, high = -1000.0, 1000.0  # over the temperature; at the first no unit is in, at the second every one of the top
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if mask(middle).sum() < budget else (low, middle)
    return mask(high)


def scores(seed, scale=1.0):
    return np.random.default_rng(seed).normal(size=SIZES).astype(np.float32) * scale


@pytest.mark.parametrize("temperature", [30.0, 1.0, 0.1, 1e-3, 1e-6, 1e-12])
@pytest.mark.parametrize("budget", [0.3, 1.0, 7.0, 12.6, 36.0, 36.99, 37.0])
def test_the_mask_is_the_bisected_one_and_keeps_the_budget(budget, temperature):
    given = scores(0)
    mask = np.asarray(MASK(given, budget, temperature))
    np.testing.assert_allclose(mask.sum(-1, dtype=np.float64), budget, rtol=2e-6)
    assert mask.min() >= 0 and mask.max() <= 1
    for row, found in zip(given, mask):
        # A difference of scores over the temperature is rounded to float32: so much can a mask be off.
        np.testing.assert_allclose(found, bisected(row, budget, temperature), atol=3e-6, rtol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 1e-3])
def test_far_scores_do_not_blur_those_at_the_edge(temperature):
    """All scores lie far from zero, some far from each other; what matters are the differences at the edge."""
    given = np.concatenate([scores(1)[0, :10] * temperature + 1000, [1e6, 5e5, -1e6]]).astype(np.float32)
    mask = np.asarray(MASK(given, 6.0, temperature))
    np.testing.assert_allclose(mask, bisected(given, 6.0, temperature), atol=1e-5)
    assert np.all(mask[10:12] == 1) and mask[12] == 0


def test_equal_scores_share_the_budget_at_every_temperature():
    np.testing.assert_allclose(MASK(jnp.zeros(8), 5.0, 0.0), 5 / 8, rtol=1e-6)
    np.testing.assert_allclose(MASK(jnp.zeros(8), 5.0, 1.0), 5 / 8, rtol=1e-6)
    edge = jnp.array([3.0, 1.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(MASK(edge, 2.0, 0.0), [1, 1 / 3, 1 / 3, 1 / 3, 0], atol=1e-6)


def test_at_zero_temperature_it_is_the_hard_mask():
    given = scores(2)
    hard = np.asarray(ranks(jnp.asarray(given)) < 9)
    np.testing.assert_array_equal(MASK(given, 9.0, 0.0), hard)
    for row, kept in zip(given, hard):
        assert set(np.flatnonzero(kept)) == set(np.argsort(row)[-9:])


@pytest.mark.parametrize("temperature", [2.0, 0.3, 0.05])
@pytest.mark.parametrize("budget", [0.5, 5.0, 20.4])
def test_the_gradient_is_that_of_the_bisected_mask(budget, temperature):
    given, weights = scores(3), np.random.default_rng(4).normal(size=SIZES)
    by_scores, by_budget, by_temperature = GRADIENTS(given, budget, temperature, weights)

    def reference(s, k, t):
        return sum(float(bisected(row, k, t) @ w) for row, w in zip(s, weights))

    def slope(function, by):
        return (function(by) - function(-by)) / (2 * by)

    small = 1e-6
    expected = np.zeros(SIZES)
    for place in np.ndindex(*SIZES):
        unit = np.zeros(SIZES)
        unit[place] = 1
        expected[place] = slope(lambda by, unit=unit: reference(given + by * unit, budget, temperature), small)
    np.testing.assert_allclose(by_scores, expected, rtol=1e-3, atol=2e-4 / temperature)
    assert np.abs(expected).max() > 0.01 / temperature
    close = {"rtol": 1e-3, "atol": 1e-3 / temperature}
    np.testing.assert_allclose(by_budget, slope(lambda by: reference(given, budget + by, temperature), small), **close)
    np.testing.assert_allclose(
        by_temperature, slope(lambda by: reference(given, budget, temperature + by), small), **close
    )


def test_gradients_are_finite_where_the_mask_is_flat_or_hard():
    for budget, temperature in ((37.0, 1.0), (9.0, 0.0), (9.0, 1e-9), (1e-3, 1.0)):
        weights = np.random.default_rng(6).normal(size=SIZES)
        assert np.isfinite(GRADIENTS(scores(5), budget, temperature, weights)[0]).all()
