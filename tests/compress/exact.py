"""The exact optimum of weighted one-dimensional k-means, by dynamic programming over all cuts of the sorted values."""

import numpy as np


def least_error(values, weights, entries):
    """The least sum of weights (value - nearest of `entries` numbers)^2, in float64; O(entries n^2)."""
    order = np.argsort(values)
    v, w = values[order].astype(np.float64), weights[order].astype(np.float64)
    sums = [np.concatenate([[0.0], np.cumsum(w * v**power)]) for power in range(3)]
    mass, moment, square = (s[None, :] - s[:, None] for s in sums)  # [begin, end]
    cost = np.where(mass > 0, square - moment**2 / np.where(mass > 0, mass, 1), 0.0)
    cost[np.tri(len(v) + 1, k=-1, dtype=bool)] = np.inf
    least = cost[0]
    for _ in range(entries - 1):
        least = (least[:, None] + cost).min(axis=0)
    return max(least[-1], 0.0)
