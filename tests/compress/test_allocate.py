"""The mix of bits against every possible mix of a few matrices."""

import itertools

import numpy as np
import pytest

from pomona.compress.allocate import Choice, allocate, average, check_average, cost
from pomona.core.errors import UserError


def choices(seed, count=9):
    rng = np.random.default_rng(seed)
    sizes, high = rng.integers(1, 9, count) * 4096, rng.exponential(size=count)
    low = high * rng.uniform(2, 30, count)
    return [Choice(int(n), 4.1, 2.05, float(a), float(b)) for n, a, b in zip(sizes, high, low)]


def loss(items, low):
    return sum(c.low_loss if at_low else c.high_loss for c, at_low in zip(items, low))


@pytest.mark.parametrize("bits", [2.3, 3.0, 3.5, 3.7, 4.05])
@pytest.mark.parametrize("seed", range(6))
def test_the_mix_meets_the_average_and_costs_at_most_one_matrix_more_than_the_best(seed, bits):
    items = choices(seed)
    low = allocate(items, bits)
    assert average(items, low) <= bits
    every = itertools.product([False, True], repeat=len(items))
    best = min(loss(items, mix) for mix in every if average(items, mix) <= bits)
    assert best <= loss(items, low) <= best + max(c.low_loss - c.high_loss for c in items)
    for index, at_low in enumerate(low):  # none that would fit at 4 bits is left at 2
        assert not at_low or average(items, [*low[:index], False, *low[index + 1 :]]) > bits


def test_matrices_of_one_size_go_in_the_order_of_their_loss():
    items = [Choice(100, 4, 2, 1.0, 1.0 + price) for price in (5, 1, 4, 2, 3)]
    assert allocate(items, 3.2) == [False, True, False, True, False]


def test_two_and_four_are_all_tensors_alike_whatever_tables_cost():
    items = choices(0)
    assert allocate(items, 4) == [False] * 9 and allocate(items, 2) == [True] * 9


@pytest.mark.parametrize("bits", [1.0, 2.049, 4.2, 8.0])
def test_an_average_that_no_mix_reaches_names_the_range(bits):
    with pytest.raises(UserError, match=r"between 2\.050 .* and 4\.100"):
        check_average(choices(0), bits)


def test_costs_count_tables_and_scales():
    assert cost(4, 3072, balanced=False) == pytest.approx(4 + 16 * 16 / (16 * 3072) + 16 / 3072)
    assert cost(2, 3072, balanced=False) == pytest.approx(2 + 4 * 16 / (16 * 3072) + 16 / 3072)
    assert cost(2, 3072, balanced=True) == pytest.approx(2 + 16 / 3072)
    assert cost(4, 3072, balanced=True) == cost(4, 3072, balanced=False)
