"""k-means on histograms against the exact optimum over all cuts of the sorted values."""

import itertools

import numpy as np
import pytest
from exact import least_error

from pomona.compress.kmeans import boundaries, kmeans, position, value

BINS = 4096

DRAWS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails": lambda rng, n: rng.standard_t(3, size=n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "uniform": lambda rng, n: rng.uniform(-1, 1, size=n),
    "two heaps and one far": lambda rng, n: np.concatenate(
        [rng.normal(-3, 0.1, n // 2), rng.normal(2, 1, n // 2), [40]]
    ),
}


def of_values(values, weights):
    histogram = np.bincount(position(values, BINS).astype(int), weights, BINS)
    return histogram[None, :]


def error(values, weights, centers):
    return sum(weights * np.min((values[:, None] - centers) ** 2, axis=1))


def test_the_reference_is_the_least_over_all_partitions():
    rng = np.random.default_rng(0)
    values, weights = np.sort(rng.normal(size=9)), rng.uniform(0.1, 1, 9)
    least = np.inf
    for cuts in itertools.combinations(range(1, 9), 2):
        parts = np.split(np.arange(9), cuts)
        means = np.array([np.average(values[part], weights=weights[part]) for part in parts])
        least = min(least, sum(np.sum(weights[p] * (values[p] - m) ** 2) for p, m in zip(parts, means)))
    assert least_error(values, weights, 3) == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("entries", [4, 16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("draw", DRAWS)
def test_the_error_is_within_two_thousandths_of_the_optimum(draw, weighted, entries):
    rng = np.random.default_rng(len(draw))
    values = DRAWS[draw](rng, 1500)
    values /= np.abs(values).max()
    weights = rng.exponential(size=len(values)) if weighted else np.ones(len(values))
    centers = kmeans(of_values(values, weights), entries)[0]
    assert np.all(np.diff(centers) >= 0)
    assert error(values, weights, centers) <= 1.002 * least_error(values, weights, entries)


def test_groups_do_not_see_each_other():
    rng = np.random.default_rng(1)
    each = [of_values(rng.uniform(-1, 1, 500) ** power, np.ones(500)) for power in (1, 3, 5)]
    together = kmeans(np.concatenate(each), 16)
    np.testing.assert_array_equal(together, np.concatenate([kmeans(one, 16) for one in each]))


def test_fewer_values_than_entries_are_all_in_the_table():
    values = np.array([-1.0, -0.25, 0.125, 0.5, 1.0])
    centers = kmeans(of_values(np.repeat(values, 7), np.ones(35)), 16)[0]
    assert np.isfinite(centers).all()
    assert np.abs(values[:, None] - centers).min(axis=1).max() < 1 / 1000


def test_boundaries_give_every_bin_to_its_nearest_center():
    centers = np.sort(np.random.default_rng(2).uniform(-1, 1, (3, 16)), axis=1)
    middles = value(np.arange(BINS) + 0.5, BINS)
    for row, edges in zip(centers, boundaries(centers, BINS)):
        found = np.searchsorted(edges, np.arange(BINS), side="right")
        nearest = np.abs(middles[:, None] - row).argmin(axis=1)
        assert (found != nearest).sum() == 0
