"""Norm and rotary positions of heads on TPU as one Pallas kernel: heads are read once and written once.

XLA makes several passes of it, and one of them over half-empty vectors, since a pair's other half is 64 lanes away; the
kernel turns the lanes. It reads heads beside each other, as the projection leaves them, and writes head after head, as
the attention kernel wants them.

Shapes: B batch, T tokens, N heads, H head, M = N * H. A block is P tokens of G heads.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

BLOCK_TOKENS, BLOCK_HEADS = 256, 8
LANES, SUBLANES = 128, 8


def norm_rope(
    x_BTNH: jax.Array,
    weight_H: jax.Array,
    cos_BTH: jax.Array,
    sin_BTH: jax.Array,
    epsilon: float,
    interpret: bool = False,
) -> jax.Array:
    """rms_norm(x) * cos + swapped halves of rms_norm(x) * sin, for every head; float32 inside.

    Args:
        cos_BTH: float32, both halves; the sine's first half is negative.
    """
    B, T, N, H = x_BTNH.shape
    flat_BTM = x_BTNH.reshape(B, T, N * H)
    return _call(epsilon, interpret, flat_BTM, weight_H, cos_BTH, sin_BTH).swapaxes(1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _call(epsilon, interpret, x_BTM, weight_H, cos_BTH, sin_BTH):
    return _forward(epsilon, interpret, x_BTM, weight_H, cos_BTH, sin_BTH)[0]


def _forward(epsilon, interpret, x_BTM, weight_H, cos_BTH, sin_BTH):
    from jax.experimental import pallas as pl

    B, T, M = x_BTM.shape
    H = weight_H.shape[0]
    grid, tokens, heads = _blocks(T, M // H, H)
    flat, table, row, headwise = _specs(pl, tokens, heads, H)
    out_BNTH = pl.pallas_call(
        partial(_forward_block, epsilon, heads),
        grid=(B, *grid),
        in_specs=[flat, row, table, table],
        out_specs=headwise,
        out_shape=jax.ShapeDtypeStruct((B, M // H, T, H), x_BTM.dtype),
        interpret=interpret,
        name="norm_rope",
        **_parallel(interpret),
    )(x_BTM, weight_H.astype(jnp.float32)[None], cos_BTH, sin_BTH)
    return out_BNTH, (x_BTM, weight_H, cos_BTH, sin_BTH)


def _backward(epsilon, interpret, saved, d_out_BNTH):
    from jax.experimental import pallas as pl

    x_BTM, weight_H, cos_BTH, sin_BTH = saved
    B, T, M = x_BTM.shape
    H = weight_H.shape[0]
    grid, tokens, heads = _blocks(T, M // H, H)
    flat, table, row, headwise = _specs(pl, tokens, heads, H)
    part = pl.BlockSpec((None, None, None, SUBLANES, H), lambda b, t, n: (b, t, n, 0, 0))
    d_x_BTM, parts = pl.pallas_call(
        partial(_backward_block, epsilon, heads, T),
        grid=(B, *grid),
        in_specs=[headwise, flat, row, table, table],
        out_specs=[flat, part],
        out_shape=[
            jax.ShapeDtypeStruct(x_BTM.shape, x_BTM.dtype),
            jax.ShapeDtypeStruct((B, *grid, SUBLANES, H), jnp.float32),
        ],
        interpret=interpret,
        name="norm_rope_backward",
        **_parallel(interpret),
    )(d_out_BNTH, x_BTM, weight_H.astype(jnp.float32)[None], cos_BTH, sin_BTH)
    d_weight_H = jnp.sum(parts, axis=(0, 1, 2, 3)).astype(weight_H.dtype)
    return d_x_BTM, d_weight_H, jnp.zeros_like(cos_BTH), jnp.zeros_like(sin_BTH)


_call.defvjp(_forward, _backward)


def _forward_block(epsilon, heads, x_ref, weight_ref, cos_ref, sin_ref, out_ref):
    H = weight_ref.shape[-1]
    cos_PH, sin_PH, weight_1H = cos_ref[...], sin_ref[...], weight_ref[...]
    for head in range(heads):
        x_PH = x_ref[:, head * H : (head + 1) * H].astype(jnp.float32)
        y_PH = x_PH * _scale(x_PH, epsilon) * weight_1H
        out_ref[head] = (y_PH * cos_PH + _swap(y_PH) * sin_PH).astype(out_ref.dtype)


def _backward_block(epsilon, heads, T, d_out_ref, x_ref, weight_ref, cos_ref, sin_ref, d_x_ref, part_ref):
    H = weight_ref.shape[-1]
    cos_PH, sin_PH, weight_1H = cos_ref[...], sin_ref[...], weight_ref[...]
    sum_SH = jnp.zeros((SUBLANES, H), jnp.float32)
    inside_P1 = _inside(T, cos_PH.shape[0])
    for head in range(heads):
        x_PH = x_ref[:, head * H : (head + 1) * H].astype(jnp.float32)
        d_PH = d_out_ref[head].astype(jnp.float32)
        d_y_PH = d_PH * cos_PH + _swap(d_PH * sin_PH)
        scale_P1 = _scale(x_PH, epsilon)
        unit_PH = x_PH * scale_P1
        d_weight_PH = d_y_PH * unit_PH
        if inside_P1 is not None:
            d_weight_PH = jnp.where(inside_P1, d_weight_PH, 0)
        sum_SH += jnp.sum(d_weight_PH.reshape(-1, SUBLANES, H), axis=0)
        d_unit_PH = d_y_PH * weight_1H
        along_P1 = jnp.mean(d_unit_PH * unit_PH, axis=-1, keepdims=True)
        d_x_ref[:, head * H : (head + 1) * H] = (scale_P1 * (d_unit_PH - unit_PH * along_P1)).astype(d_x_ref.dtype)
    part_ref[...] = sum_SH


def _scale(x_PH, epsilon):
    return jax.lax.rsqrt(jnp.mean(x_PH * x_PH, axis=-1, keepdims=True) + epsilon)


def _swap(x_PH):
    """The halves of every head exchanged: a turn of the lanes by half a head."""
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.roll(x_PH, x_PH.shape[-1] // 2, 1)


def _inside(T, tokens):
    """Which tokens of a backward block exist; None where all do, for what lies beyond the end is anything."""
    from jax.experimental import pallas as pl

    if T % tokens == 0:
        return None
    return pl.program_id(1) * tokens + jax.lax.broadcasted_iota(jnp.int32, (tokens, 1), 0) < T


def _blocks(T: int, N: int, H: int) -> tuple[tuple[int, int], int, int]:
    """The grid, and tokens and heads of a block: whole rows of vectors, and whole vectors unless it has all heads."""
    tokens = min(BLOCK_TOKENS, SUBLANES * math.ceil(T / SUBLANES))
    sizes = (size for size in range(min(BLOCK_HEADS, N), 0, -1) if N % size == 0 and size * H % LANES == 0)
    heads = next(sizes, N)
    return (math.ceil(T / tokens), N // heads), tokens, heads


def _specs(pl, tokens, heads, H):
    """Block specs: heads beside each other, a table of positions, the weight, head after head."""
    return (
        pl.BlockSpec((None, tokens, heads * H), lambda b, t, n: (b, t, n)),
        pl.BlockSpec((None, tokens, H), lambda b, t, n: (b, t, 0)),
        pl.BlockSpec((1, H), lambda b, t, n: (0, 0)),
        pl.BlockSpec((None, heads, tokens, H), lambda b, t, n: (b, n, t, 0)),
    )


def _parallel(interpret: bool) -> dict:
    """Blocks do not depend on each other, so both cores of a chip may work on them."""
    if interpret:
        return {}
    from jax.experimental.pallas import tpu as pltpu

    return {"compiler_params": pltpu.CompilerParams(dimension_semantics=("parallel",) * 3)}
