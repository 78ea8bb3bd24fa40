"""Attention of new tokens over a cache on TPU as one Pallas kernel.

XLA cuts a layer out of the cache, multiplies all of its columns however few are filled, and lets scores go through
memory. The kernel reads a layer's columns where they lie, only as many as a sequence has, a block of them while the one
before is worked on, and keeps on chip what it needs of the scores (Dao, "Flash Attention 2", section 3.1).

Shapes: L layers, B sequences of the cache, R sequences of this call, T new tokens, S cache columns, N query heads, K
key-value heads, G = N / K, H head. A block is P rows (a token of a query head) of a key-value head and C columns.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pomona.ops.attention_reference import MASKED

SUBLANES, LANES = 16, 128
MOST_ROWS, FEW_ROWS = 512, 64
COLUMNS, COLUMNS_OF_FEW_ROWS = 512, 2048


class Columns(NamedTuple):
    """Keys and values as a cache keeps them: numbers, and for integers a scale of each column."""

    keys: jax.Array  # [..., K, S, H]
    values: jax.Array
    key_scales: jax.Array | None = None  # float32 [..., K, S]
    value_scales: jax.Array | None = None


class _Shape(NamedTuple):
    """How the work is cut up; all of it is known when a program is traced."""

    tokens: int  # T
    rows: int  # of a key-value head: every token of each of its query heads, filled up
    P: int
    C: int
    own_C: int
    blocks: int  # of cached columns
    own_blocks: int
    ragged: bool  # the cache's last block goes beyond its end
    scaled: bool

    @property
    def one_head(self) -> bool:
        """Whether a block's rows are of one query head, in the order of the tokens."""
        return self.tokens % self.P == 0


def _shape(T: int, G: int, cached: Columns, span: int) -> _Shape:
    S = cached.keys.shape[-2]
    P = min(_up(G * T, SUBLANES), MOST_ROWS)
    rows = _up(G * T, P)
    C = min(COLUMNS_OF_FEW_ROWS if rows <= FEW_ROWS else COLUMNS, _up(span, SUBLANES), S)
    own_C = min(COLUMNS, _up(T, SUBLANES))
    blocks, own_blocks = math.ceil(min(span, S) / C), math.ceil(T / own_C)
    return _Shape(T, rows, P, C, own_C, blocks, own_blocks, S % C > 0, cached.key_scales is not None)


def attend(
    q_RTNH: jax.Array,
    cached: Columns,
    own: Columns,
    layer: jax.Array | int,
    sequence_R: jax.Array,
    filled_R: jax.Array,
    span: int,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Each token's attention over what its sequence has in the cache, and the new tokens up to itself.

    Args:
        cached: of all layers, [L, B, K, S, H].
        own: of the new tokens, [R, K, T, H].
        sequence_R: which of the cache's sequences they are.
        filled_R: how many of its columns are looked at, from the first on; `span` at most.

    Returns:
        [R, T, N, H], like the queries.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    R, T, N, H = q_RTNH.shape
    K = cached.keys.shape[2]
    shape = _shape(T, N // K, cached, span)
    q_RKPH = (q_RTNH * H**-0.5).reshape(R, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(R, K, N // K * T, H)
    q_RKPH = jnp.pad(q_RKPH, ((0, 0), (0, 0), (0, shape.rows - q_RKPH.shape[2]), (0, 0)))
    token_P1 = (jnp.arange(shape.rows, dtype=jnp.int32) % T)[:, None]
    own = _padded(own, shape.own_blocks * shape.own_C)
    beside = [x[..., None, :] for x in (*cached[2:], *own[2:]) if x is not None]  # scales along the lanes
    order = ("parallel", "parallel", "parallel", "arbitrary")
    out_RKPH = pl.pallas_call(
        partial(_block, shape),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(R, K, shape.rows // shape.P, max(shape.blocks, shape.own_blocks)),
            in_specs=_specs(pl, shape, H),
            out_specs=pl.BlockSpec((None, None, shape.P, H), lambda r, k, i, j, *_: (r, k, i, 0)),
            scratch_shapes=[pltpu.VMEM((shape.P, width), jnp.float32) for width in (LANES, LANES, H)],
        ),
        out_shape=jax.ShapeDtypeStruct(q_RKPH.shape, q_RTNH.dtype),
        cost_estimate=_cost(pl, shape, R * K, H, cached.keys.dtype.itemsize),
        interpret=interpret,
        name="cached_attention",
        compiler_params=None if interpret else pltpu.CompilerParams(dimension_semantics=order),  # type: ignore[arg-type]
    )(
        jnp.reshape(layer, 1).astype(jnp.int32),
        sequence_R,
        jnp.minimum(filled_R, span),
        *(q_RKPH, token_P1, *cached[:2], *own[:2], *beside),
    )
    out_RKGTH = out_RKPH[:, :, : N // K * T].reshape(R, K, N // K, T, H)
    return out_RKGTH.transpose(0, 3, 1, 2, 4).reshape(R, T, N, H)


def _specs(pl: Any, shape: _Shape, H: int) -> list[Any]:
    """Of the queries, their rows' tokens, cached and own keys and values, and their scales."""
    P, C, own_C = shape.P, shape.C, shape.own_C

    def cached(r: Any, k: Any, i: Any, j: Any, layer: Any, sequence: Any, filled: Any) -> tuple[Any, ...]:
        """What is not looked at is not read either: the block stays the last one that is."""
        last = jnp.clip(pl.cdiv(filled[r], C) - 1, 0, shape.blocks - 1)
        return layer[0], sequence[r], k, jnp.minimum(j, last), 0

    def own(r: Any, k: Any, i: Any, j: Any, *_: Any) -> tuple[Any, ...]:
        return r, k, jnp.minimum(j, shape.own_blocks - 1), 0

    turned = lambda index: lambda *place: (*index(*place)[:-2], 0, index(*place)[-2])
    specs = [pl.BlockSpec((None, None, P, H), lambda r, k, i, j, *_: (r, k, i, 0))]
    specs += [pl.BlockSpec((P, 1), lambda r, k, i, j, *_: (i, 0))]
    specs += [pl.BlockSpec((None, None, None, C, H), cached)] * 2
    specs += [pl.BlockSpec((None, None, own_C, H), own)] * 2
    if shape.scaled:
        specs += [pl.BlockSpec((None, None, None, 1, C), turned(cached))] * 2
        specs += [pl.BlockSpec((None, None, 1, own_C), turned(own))] * 2
    return specs


def _cost(pl: Any, shape: _Shape, sequences: int, H: int, itemsize: int) -> Any:
    """With as many columns in every sequence as may be."""
    own_C, number = shape.own_C, shape.own_blocks
    own = own_C * (number + 1) / 2 if shape.one_head and own_C == shape.P else own_C * number
    seen = sequences * shape.rows * (shape.blocks * shape.C + own)
    numbers = sequences * (shape.rows // shape.P) * (shape.blocks * shape.C + own_C * number) * 2 * H
    touched = numbers * itemsize + 4 * sequences * shape.rows * H
    return pl.CostEstimate(flops=int(4 * seen * H), transcendentals=int(seen), bytes_accessed=touched)


def _block(shape, layer, sequence, filled, q, token, *refs):
    """Some rows and some columns, of the cache and of the new ones; after the last ones the rows are done."""
    from jax.experimental import pallas as pl

    (keys, values, own_keys, own_values, *scales), (out, most, total, sums) = refs[:-4], refs[-4:]
    key_scales, value_scales, own_key_scales, own_value_scales = scales or [None] * 4
    P, C, own_C = shape.P, shape.C, shape.own_C
    i, j = pl.program_id(2), pl.program_id(3)
    count = filled[pl.program_id(0)]
    add = partial(_add, q, most, total, sums)
    place = lambda width, along: (
        j * width + jax.lax.broadcasted_iota(jnp.int32, (1, width) if along else (width, 1), along)
    )

    @pl.when(j == 0)
    def _():
        most[...] = jnp.full(most.shape, MASKED, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        sums[...] = jnp.zeros(sums.shape, jnp.float32)

    @pl.when((j < shape.blocks) & (j * C < count))
    def _():
        numbers_CH = values[...].astype(q.dtype)
        if shape.ragged:  # beyond the cache's end is anything, and nothing times it would be no number
            numbers_CH = jnp.where(place(C, 0) < count, numbers_CH, 0)
        add(keys[...], numbers_CH, key_scales, value_scales, place(C, 1) < count)

    # New tokens after the last of a block's rows are seen by none of them.
    needed = j * own_C < i * P % shape.tokens + P if shape.one_head else True

    @pl.when((j < shape.own_blocks) & needed)
    def _():
        visible = place(own_C, 1) <= token[...]
        add(own_keys[...], own_values[...].astype(q.dtype), own_key_scales, own_value_scales, visible)

    @pl.when(j == pl.num_programs(3) - 1)
    def _():
        out[...] = (sums[...] / total[:, :1]).astype(out.dtype)


def _add(q, most, total, sums, keys_CH, values_CH, key_scales, value_scales, visible):
    """Some columns more: brings up to date the largest score of each row, its weights' total and weighted values."""
    scores_PC = _product(q[...], keys_CH, 1)
    if key_scales is not None:
        scores_PC = scores_PC * key_scales[...]
    scores_PC = jnp.where(visible, scores_PC, MASKED)
    before_P1 = most[:, :1]
    most_P1 = jnp.maximum(before_P1, jnp.max(scores_PC, axis=1, keepdims=True))
    weights_PC = jnp.exp(scores_PC - most_P1)
    shrunk_P1 = jnp.exp(before_P1 - most_P1)
    total[...] = total[...] * shrunk_P1 + jnp.sum(weights_PC, axis=1, keepdims=True)
    if value_scales is not None:
        weights_PC = jnp.where(visible, weights_PC * value_scales[...], 0)
    sums[...] = sums[...] * shrunk_P1 + _product(weights_PC.astype(q.dtype), values_CH, 0)
    most[...] = jnp.broadcast_to(most_P1, most.shape)


def _product(x_PC: jax.Array, numbers: jax.Array, along: int) -> jax.Array:
    """float32; `along` is the dimension of the numbers that is summed over. bfloat16 holds all of -127 to 127."""
    dimensions = (((1,), (along,)), ((), ()))
    return jax.lax.dot_general(x_PC, numbers.astype(x_PC.dtype), dimensions, preferred_element_type=jnp.float32)


def _padded(own: Columns, length: int) -> Columns:
    """With columns that no token sees: whole vectors."""
    missing = length - own.keys.shape[2]
    fill = lambda x: jnp.pad(x, [(0, 0), (0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 3))
    scales = (x if x is None else fill(x) for x in own[2:])
    return Columns(fill(own.keys), fill(own.values), *scales) if missing else own


def _up(size: int, step: int) -> int:
    return math.ceil(size / step) * step
