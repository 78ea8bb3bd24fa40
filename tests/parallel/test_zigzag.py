"""Which tokens each shard of a sequence holds, by its definition; and that all have the same work."""

import jax.numpy as jnp
import numpy as np
import pytest

from pomona.parallel.zigzag import order, restored


@pytest.mark.parametrize("shards", [2, 3, 4, 8])
def test_a_shard_holds_a_part_from_either_end(shards):
    length = 6 * shards
    parts = np.arange(length).reshape(2 * shards, 3)
    held = order(length, shards).reshape(shards, 6)
    for shard in range(shards):
        assert held[shard].tolist() == [*parts[shard], *parts[2 * shards - 1 - shard]]
    seen = (held + 1).sum(axis=1)  # a token attends to itself and all before it
    assert len(set(seen.tolist())) == 1


def test_one_shard_holds_all_as_it_is():
    assert order(5, 1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("shards", [2, 3, 4])
def test_what_was_gathered_is_restored(shards):
    x = np.random.default_rng(0).normal(size=(2, 12 * shards, 3, 2)).astype(np.float32)
    assert np.array_equal(restored(jnp.asarray(x[:, order(12 * shards, shards)]), shards), x)
    segments = np.arange(24 * shards).reshape(2, -1)
    assert np.array_equal(restored(jnp.asarray(segments[:, order(12 * shards, shards)]), shards), segments)
