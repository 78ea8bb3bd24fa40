"""Temperature, top-k and top-p against the distribution that NumPy works out by brute force."""

import jax.numpy as jnp
import numpy as np
import pytest

import pomona.infer.sample
from pomona.infer.sample import choices, likely
from pomona.model.sampling import Sampling

DRAWS = 40_000
LOGITS = np.array([2.0, -1.0, 0.5, 0.49, 3.0, -4.0, 0.0, 1.5, 2.5, -0.3])


def sample(rows, sampling, seed=0):
    """A token for each row, as so many sequences that choose alike."""
    found = pomona.infer.sample.sample(rows, jnp.arange(len(rows)), choices([sampling] * len(rows), [seed] * len(rows)))
    return np.asarray(found)


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
    tokens = sample(rows, sampling)
    p = expected(LOGITS, sampling.temperature, sampling.top_k, sampling.top_p)
    seen = np.bincount(tokens, minlength=len(LOGITS)) / DRAWS
    assert not seen[p == 0].any(), "a token outside the set"
    assert (np.abs(seen - p) <= 5 * np.sqrt(p * (1 - p) / DRAWS)).all()


def test_temperature_zero_is_the_best_token_and_the_first_of_equals():
    logits = jnp.asarray([[0.0, 3.0, 3.0], [5.0, 1.0, -2.0]])
    assert sample(logits, Sampling(0.0, top_k=2, top_p=0.1)).tolist() == [1, 0]


def test_rows_are_filtered_each_for_itself():
    logits = jnp.asarray([LOGITS, LOGITS[::-1]] * 500, jnp.float32)
    tokens = sample(logits, Sampling(1.0, top_k=2), 1)
    assert set(tokens[::2]) == {4, 8} and set(tokens[1::2]) == {5, 1}


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.5)], ids=str)
def test_equal_logits_do_not_widen_the_set(sampling):
    rows = jnp.zeros((4000, 4))
    assert set(sample(rows, sampling)) == {0, 1}


def test_forbidden_tokens_are_never_drawn():
    rows = jnp.broadcast_to(jnp.asarray([-jnp.inf, 0.0, -jnp.inf, 0.0]), (2000, 4))
    for sampling in (Sampling(1.0), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.99)):
        assert set(sample(rows, sampling)) == {1, 3}


WIDE = np.round(np.random.default_rng(8).normal(size=20_000) * 3, 2).astype(np.float32)
"""With many ties, and more tokens than the first look takes in."""


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0, 700), Sampling(0.5, top_p=0.9), Sampling(4.0, 0, 0.99), Sampling(1.0, 300, 0.5)], ids=str
)
def test_of_a_large_vocabulary_the_same_tokens_are_left_as_by_sorting_all(sampling):
    from pomona.infer.sample import _kept

    kept = _kept(jnp.asarray(WIDE)[None] / sampling.temperature, choices([sampling], [0]))[0]
    p = expected(WIDE.astype(np.float64), sampling.temperature, sampling.top_k, sampling.top_p)
    assert abs(int(kept.sum()) - int((p > 0).sum())) <= (0 if sampling.top_p == 1 else 2), "float32 sums at the border"
    assert (np.asarray(kept) ^ (p > 0)).sum() <= 2


def test_a_draw_depends_on_its_own_row_seed_and_position_alone():
    rows = jnp.asarray(np.random.default_rng(3).normal(size=(6, 50)), jnp.float32)
    mixed = [
        Sampling(1.0),
        Sampling(0.0),
        Sampling(1.0, 5),
        Sampling(0.7, 0, 0.5),
        Sampling(2.0),
        Sampling(1.0, 3, 0.9),
    ]
    seeds, places = [3, 1, 4, 1, 5, 9], jnp.asarray([7, 7, 8, 30, 1, 2])
    together = pomona.infer.sample.sample(rows, places, choices(mixed, seeds)).tolist()
    for i in range(6):
        alone = pomona.infer.sample.sample(
            rows[i : i + 1], places[i : i + 1], choices(mixed[i : i + 1], seeds[i : i + 1])
        )
        assert alone.tolist() == [together[i]]


def test_what_is_told_of_a_token_is_the_log_softmax():
    rows = np.random.default_rng(3).normal(size=(3, 50))
    own, ids, others = likely(jnp.asarray(rows, jnp.float32), jnp.asarray([4, 0, 49]), 5)
    exact = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(own, exact[[0, 1, 2], [4, 0, 49]], atol=1e-5)
    np.testing.assert_array_equal(ids, np.argsort(-exact, axis=1)[:, :5])
    np.testing.assert_allclose(others, -np.sort(-exact, axis=1)[:, :5], atol=1e-5)
