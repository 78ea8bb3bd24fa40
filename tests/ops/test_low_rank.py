"""A and B against NumPy's singular value decomposition in float64."""

import numpy as np
import pytest

from pomona.ops.low_rank import factors

SHAPES = [(40, 24), (24, 40), (32, 32)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 5, 23])
def test_the_error_that_is_left_is_that_of_the_other_singular_values(shape, rank):
    error = np.random.default_rng(0).normal(size=shape) * np.geomspace(1, 1e-3, shape[1])
    a, b = factors(error.astype(np.float32), rank)
    assert a.shape == (shape[0], rank) and b.shape == (rank, shape[1]) and a.dtype == b.dtype == np.float32
    singular = np.linalg.svd(error.astype(np.float32).astype(np.float64), compute_uv=False)
    left = np.linalg.svd(error - a.astype(np.float64) @ b.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(left[: len(singular) - rank], singular[rank:], atol=1e-6 * singular[0])
    # One size on both sides: column i of A and row i of B have the root of the singular value as their length.
    np.testing.assert_allclose(np.linalg.norm(a, axis=0), np.sqrt(singular[:rank]), rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(b, axis=1), np.sqrt(singular[:rank]), rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("more", [0, 3])
def test_full_rank_and_more_gives_the_matrix_back(shape, more):
    error = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    a, b = factors(error, min(shape) + more)
    np.testing.assert_allclose(a @ b, error, atol=3e-6 * np.abs(error).max())


@pytest.mark.parametrize("true_rank", [0, 2])
def test_a_matrix_of_low_rank_leaves_the_rest_zero(true_rank):
    rng = np.random.default_rng(2)
    error = (rng.normal(size=(30, true_rank)) @ rng.normal(size=(true_rank, 20))).astype(np.float32)
    a, b = factors(error, 6)
    assert np.isfinite(a).all() and np.isfinite(b).all()
    np.testing.assert_allclose(a @ b, error, atol=1e-5)
    assert np.abs(a[:, true_rank:]).max() < 1e-3 and np.abs(b[true_rank:]).max() < 1e-3
