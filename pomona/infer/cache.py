"""The cache of keys and values that generation reads: in the compute dtype, or in int8 with a scale for every head of
every token.

Int8 halves what bfloat16 reads, at an error of at most half a step of max|x| / 127 a number (AFM 2025 report: 8-bit KV
cache). Scales never touch the integers: those of the keys multiply the scores, those of the values the weights.

Shapes: B sequences, T tokens of this call, S cache columns, L layers, K key-value heads, H head.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pomona.model.config import Architecture
from pomona.parallel import rules

KEPT = (None, "kv_heads", None, None)
"""The logical axes of keys and values [B, K, S, H]; without the last those of their scales."""
Where = Callable[[Sequence[str | None]], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """Numbers as integers of -127 to 127 times a scale for every last dimension."""

    integers: jax.Array  # int8 [..., H]
    scales: jax.Array  # float32 [...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of all layers: stacked arrays [L, B, K, S, H], or a list of L arrays [B, K, S, H]. A list is not
    cut out of anything, nor put together again: where layers are unrolled, nothing else is as fast.

    A head's columns lie side by side, as attention multiplies them: with heads innermost, XLA turned all of it around
    before and after every write.
    """

    keys: Any  # of jax.Array or Int8
    values: Any

    @property
    def columns(self) -> int:
        """S, how many tokens of a sequence it holds at most."""
        return jax.tree.leaves(self.keys)[0].shape[2 if isinstance(self.keys, list) else 3]


def empty_cache(
    architecture: Architecture, sequences: int, columns: int, dtype: Any, layers: str, where: Where | None = None
) -> Cache:
    """A cache for so many sequences of so many tokens; int8 brings its scales.

    Args:
        layers: `scanned` or `unrolled`, as `Execution` has it.
        where: the sharding of an array with some logical axes; JAX's default device without it.
    """
    a = architecture
    shape = (sequences, a.num_kv_heads, columns, a.head_dim)

    def empty(*first: int) -> Any:
        place = lambda axes: where((*(None for _ in first), *axes)) if where else None
        numbers = jnp.zeros((*first, *shape), dtype, device=place(KEPT))
        if numbers.dtype != jnp.int8:
            return numbers
        return Int8(numbers, jnp.zeros(numbers.shape[:-1], jnp.float32, device=place(KEPT[:-1])))

    # Buffers of their own, since each is donated.
    side = lambda: [empty() for _ in range(a.num_layers)] if layers == "unrolled" else empty(a.num_layers)
    return Cache(side(), side())


def cache_bytes(architecture: Architecture, sequences: int, columns: int, dtype: Any) -> int:
    """What `empty_cache` takes, on all devices together."""
    a, size = architecture, jnp.dtype(dtype).itemsize
    head = a.head_dim * size + (4 if jnp.dtype(dtype) == jnp.int8 else 0)
    return 2 * sequences * columns * a.num_layers * a.num_kv_heads * head


def kept(like: Any, new_RTKH: jax.Array) -> jax.Array | Int8:
    """New keys or values as a cache keeps them, [R, K, T, H], `like` being those of one of its layers: attention never
    sees other numbers, whether it reads them from the cache or not."""
    new_RKTH = new_RTKH.transpose(0, 2, 1, 3)
    return quantize(new_RKTH) if isinstance(like, Int8) else new_RKTH.astype(like.dtype)


def write(old: Any, new: Any, sequence_R: jax.Array, first_R: jax.Array) -> Any:
    """Keys or values of all layers with T more columns in some sequences, from a column of each on.

    One sequence after the other, and each in place: as one scatter, XLA changes the layout of the whole cache.

    Args:
        new: stacked over layers, [L, R, K, T, H]. What would lie beyond the last column is left out.
    """
    row, numbers = (None,), [sequence_R, first_R]
    if isinstance(old, list):
        axes = lambda x: KEPT[: x.ndim]
        put = lambda o, n: rules.on_shards(_write, [axes(o), axes(o), row, row], axes(o))(o, n, *numbers)
        return [jax.tree.map(lambda o, n, i=i: put(o, n[i]), layer, new) for i, layer in enumerate(old)]
    axes = lambda x: ("layers", *KEPT[: x.ndim - 1])
    stacked = partial(_write, layers=1)
    put = lambda o, n: rules.on_shards(stacked, [axes(o), axes(o), row, row], axes(o))(o, n, *numbers)
    return jax.tree.map(put, old, new)


def _write(old: jax.Array, new: jax.Array, sequence_R: jax.Array, first_R: jax.Array, layers: int = 0) -> jax.Array:
    """`write` for one array, whose sequences come after so many dimensions."""
    S, T, columns = old.shape[layers + 2], new.shape[layers + 2], layers + 2
    window = (*new.shape[:layers], 1, *new.shape[layers + 1 :])
    spread = lambda x_T: x_T.reshape(T, *(1 for _ in new.shape[columns + 1 :]))

    def one(i: jax.Array, old: jax.Array) -> jax.Array:
        start = jnp.clip(first_R[i], 0, S - T)
        source_T = start + jnp.arange(T) - first_R[i]  # which of the new columns comes to lie at each place
        own = jax.lax.dynamic_index_in_dim(new, i, layers, keepdims=True)
        moved = jnp.take(own, jnp.clip(source_T, 0, T - 1), axis=columns) if T > 1 else own
        place = [jnp.zeros((), jnp.int32)] * old.ndim
        place[layers], place[columns] = sequence_R[i], start
        there = jax.lax.dynamic_slice(old, place, window)
        inside_T = (source_T >= 0) & (source_T < T)
        return jax.lax.dynamic_update_slice(old, jnp.where(spread(inside_T), moved, there), place)

    return jax.lax.fori_loop(0, len(first_R), one, old) if len(first_R) > 1 else one(jnp.int32(0), old)


def quantize(x: jax.Array) -> Int8:
    """The nearest integers to x over its scale, max|x| / 127 of the last dimension; zeros keep the scale zero."""
    x = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(x), axis=-1) / 127
    steps = x / jnp.where(scales > 0, scales, 1)[..., None]
    return Int8(jnp.round(steps).astype(jnp.int8), scales)
