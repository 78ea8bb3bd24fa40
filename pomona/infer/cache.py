"""The cache of keys and values that generation reads: in the compute dtype, or in int8 with a scale for every head of
every token.

Int8 halves what bfloat16 reads, at an error of at most half a step of max|x| / 127 a number (AFM 2025 report: 8-bit KV
cache). Scales never touch the integers: those of the keys multiply the scores, those of the values the weights.

Shapes: B sequences, T tokens of this call, S cache columns, L layers, N query heads, K key-value heads, G = N / K, H
head.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pomona.model.config import Architecture
from pomona.ops.attention_reference import MASKED


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """Numbers as integers of -127 to 127 times a scale for every last dimension."""

    integers: jax.Array  # int8 [..., K, H]
    scales: jax.Array  # float32 [..., K]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of all layers, and how the columns are used."""

    keys: jax.Array | Int8  # [L, B, S, K, H]
    values: jax.Array | Int8  # [L, B, S, K, H]
    used: jax.Array  # int32 scalar: columns written so far, padding included
    padding: jax.Array  # int32 [B]: columns at the left that hold no token

    @property
    def columns(self) -> int:
        """S, how many tokens it holds at most."""
        return jax.tree.leaves(self.keys)[0].shape[2]


def empty_cache(architecture: Architecture, padding_B: jax.Array, columns: int, dtype: Any = jnp.float32) -> Cache:
    """A cache for so many columns; int8 brings its scales."""
    a = architecture
    shape = (a.num_layers, padding_B.shape[0], columns, a.num_kv_heads, a.head_dim)

    def empty() -> Any:
        numbers = jnp.zeros(shape, dtype)
        return Int8(numbers, jnp.zeros(shape[:-1], jnp.float32)) if numbers.dtype == jnp.int8 else numbers

    # Two buffers, since each is donated.
    return Cache(empty(), empty(), jnp.zeros((), jnp.int32), padding_B)


def write(old: jax.Array | Int8, new_BTKH: jax.Array, column: jax.Array) -> jax.Array | Int8:
    """One layer's keys or values with T more columns from `column` on."""
    new = quantize(new_BTKH) if isinstance(old, Int8) else new_BTKH
    return jax.tree.map(
        lambda o, n: jax.lax.dynamic_update_slice_in_dim(o, n.astype(o.dtype), column, axis=1), old, new
    )


def quantize(x: jax.Array) -> Int8:
    """The nearest integers to x over its scale, max|x| / 127 of the last dimension; zeros keep the scale zero."""
    x = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(x), axis=-1) / 127
    steps = x / jnp.where(scales > 0, scales, 1)[..., None]
    return Int8(jnp.round(steps).astype(jnp.int8), scales)


def attend(q_BTNH: jax.Array, keys: jax.Array | Int8, values: jax.Array | Int8, visible_BTS: jax.Array) -> jax.Array:
    """Attention over the cache's columns, [B, S, K, H] each; float32 scores."""
    B, T, N, H = q_BTNH.shape
    k_BSKH, k_scales = (keys.integers, keys.scales) if isinstance(keys, Int8) else (keys, None)
    v_BSKH, v_scales = (values.integers, values.scales) if isinstance(values, Int8) else (values, None)
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * H**-0.5
    scores = jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, _numbers(k_BSKH, q_BTNH), preferred_element_type=jnp.float32)
    scores = _times(scores, k_scales)
    weights = jax.nn.softmax(jnp.where(visible_BTS[:, None, None], scores, MASKED), axis=-1)
    weights = _times(weights, v_scales).astype(q_BTNH.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, _numbers(v_BSKH, q_BTNH)).reshape(B, T, N, H)


def _numbers(x: jax.Array, like: jax.Array) -> jax.Array:
    """Integers in a dtype that can be multiplied; bfloat16 holds all of -127 to 127."""
    return x.astype(like.dtype) if x.dtype == jnp.int8 else x


def _times(x_BKGTS: jax.Array, scales_BSK: jax.Array | None) -> jax.Array:
    return x_BKGTS if scales_BSK is None else x_BKGTS * scales_BSK.transpose(0, 2, 1)[:, :, None, None]
