"""Which tokens of a sequence each of its shards holds: a part from its beginning and one from its end.

A token attends to all before it. With equal parts in a row the last shard would have almost twice the mean's work, and
the others would wait for it. Of 2 n parts, shard i of n holds parts i and 2 n - 1 - i, which see as many tokens for
every i (Llama 3, section 3.3.2).
"""

import jax
import jax.numpy as jnp
import numpy as np

from pomona.parallel.config import ZIGZAG

PARTS = len(ZIGZAG)


def order(length: int, shards: int) -> np.ndarray:
    """The places of a sequence's tokens, int [length], in the order in which the shards hold them, one after the other.

    One shard holds them as they are; of several, `length` is a multiple of twice their number.
    """
    if shards == 1:
        return np.arange(length)
    parts = np.arange(length).reshape(PARTS * shards, -1)
    return np.stack([parts[:shards], parts[shards:][::-1]], axis=1).reshape(-1)


def restored(x: jax.Array, shards: int) -> jax.Array:
    """What is whole along its second dimension, in the order of the sequence: the inverse of `order`."""
    parts = x.reshape(x.shape[0], shards, PARTS, -1, *x.shape[2:])
    return jnp.concatenate([parts[:, :, 0], parts[:, ::-1, 1]], axis=1).reshape(x.shape)
