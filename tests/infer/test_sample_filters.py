"""Temperature, top-k and top-p against the distribution that NumPy works out by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.infer.sample import sample
from pomona.model.sampling import Sampling

DRAWS = 40_000
LOGITS = np.array([2.0, -1.0, 0.5, 0.49, 3.0, -4.0, 0.0, 1.5, 2.5, -0.3])


def expected(logits, temperature, top_k, top_p):
    """Float64 probabilities: temperature, then the k best, then the smallest set of the best that reaches p."""
    scaled = logits / temperature
    order = np.argsort(-scaled, kind="stable")
    kept = order[:top_k] if top_k else order
    p = np.exp(scaled[kept] - scaled.max())
    p /= p.sum()
    size = int(np.searchsorted(np.cumsum(p), top_p - 1e-12) + 1) if top_p < 1 else len(p)
    out = np.zeros(len(logits))
    out[kept[:size]] = p[:size] / p[:size].sum()
    return out


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.5),
        Sampling(2.0, top_k=4),
        Sampling(1.0, top_p=0.7),
        Sampling(0.8, top_k=5, top_p=0.9),
        Sampling(1.0, top_p=1e-6),
        Sampling(1.0, top_k=1),
        Sampling(1.0, top_k=99),
    ],
    ids=str,
)
def test_draws_follow_the_filtered_distribution(sampling):
    rows = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (DRAWS, len(LOGITS)))
    tokens = np.asarray(sample(rows, jax.random.key(0), sampling))
    p = expected(LOGITS, sampling.temperature, sampling.top_k, sampling.top_p)
    seen = np.bincount(tokens, minlength=len(LOGITS)) / DRAWS
    assert not seen[p == 0].any(), "a token outside the set"
    assert (np.abs(seen - p) <= 5 * np.sqrt(p * (1 - p) / DRAWS)).all()


def test_temperature_zero_is_the_best_token_and_the_first_of_equals():
    logits = jnp.asarray([[0.0, 3.0, 3.0], [5.0, 1.0, -2.0]])
    assert sample(logits, jax.random.key(0), Sampling(0.0, top_k=2, top_p=0.1)).tolist() == [1, 0]


def test_rows_are_filtered_each_for_itself():
    logits = jnp.asarray([LOGITS, LOGITS[::-1]] * 500, jnp.float32)
    tokens = np.asarray(sample(logits, jax.random.key(1), Sampling(1.0, top_k=2)))
    assert set(tokens[::2]) == {4, 8} and set(tokens[1::2]) == {5, 1}


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.5)], ids=str)
def test_equal_logits_do_not_widen_the_set(sampling):
    rows = jnp.zeros((4000, 4))
    assert set(np.asarray(sample(rows, jax.random.key(0), sampling))) == {0, 1}


def test_forbidden_tokens_are_never_drawn():
    rows = jnp.broadcast_to(jnp.asarray([-jnp.inf, 0.0, -jnp.inf, 0.0]), (2000, 4))
    for sampling in (Sampling(1.0), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.99)):
        assert set(np.asarray(sample(rows, jax.random.key(0), sampling))) == {1, 3}
