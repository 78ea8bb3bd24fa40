"""Attention in blocks of queries that compute only the keys they can see; for CPUs, correct anywhere.

A block's scores live only while the block is worked on: the backward pass makes them again from the saved
log-normalisers (Dao 2023, FlashAttention-2, section 3.1), so memory grows with T and not with T squared, and the
masked upper half is never multiplied. Blocks are unrolled: XLA:CPU runs no loop as fast as straight code. The backward
pass holds scores with keys first: three of its four products are then plain ones, which XLA:CPU does best.

Shapes: B batch, T query tokens, S key tokens, K key-value heads, G query heads per key-value head, H head,
Q queries of a block, M = G * Q, P keys that the block can see.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pomona.ops.attention_reference import MASKED, allowed

BLOCK = 128
MAX_BLOCKS = 16  # unrolled code grows with the number of blocks


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    q_segments_BT: jax.Array,
    k_segments_BS: jax.Array,
    q_offset: jax.Array | int,
) -> jax.Array:
    """See `pomona.ops.attention.attention`. A traced `q_offset` costs the keys that a static one would skip."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BKGTH = (q_BTNH * H**-0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    static = q_offset if isinstance(q_offset, int) else None
    offset = jnp.asarray(q_offset, jnp.int32)
    out_BKGTH = _blocked(static, q_BKGTH, k_BKSH, v_BKSH, q_segments_BT, k_segments_BS, offset)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _blocks(length: int, keys: int, static_offset: int | None) -> list[tuple[int, int, int]]:
    """(first query, end of queries, keys the block can see) of every block."""
    size = max(BLOCK, -(-length // MAX_BLOCKS))
    starts = range(0, length, size)
    ends = [min(start + size, length) for start in starts]
    seen = [keys if static_offset is None else min(end + static_offset, keys) for end in ends]
    return list(zip(starts, ends, seen))


def _rows(block, x):
    """The block's rows of x_BKGTH, those of one key-value head together: BKMH."""
    start, end, _ = block
    return x[:, :, :, start:end].reshape(*x.shape[:2], -1, x.shape[-1])


def _mask(block, heads, groups, q_segments, k_segments, offset, keys_first=False):
    """Where the block's queries see keys: mask_BKMP, or mask_BKPM.

    Spread over the heads before it is reshaped: so XLA:CPU applies it in a loop of its own, and not in every `exp`.
    """
    start, end, seen = block
    q_index = jnp.arange(start, end) + offset
    mask = allowed(q_index, jnp.arange(seen), q_segments[:, start:end], k_segments[:, :seen])
    B, Q, P = mask.shape
    if keys_first:
        mask_BKPGQ = jnp.broadcast_to(mask.swapaxes(1, 2)[:, None, :, None], (B, heads, P, groups, Q))
        return mask_BKPGQ.reshape(B, heads, P, groups * Q)
    return jnp.broadcast_to(mask[:, None, None], (B, heads, groups, Q, P)).reshape(B, heads, groups * Q, P)


_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(static, q, k, v, q_segments, k_segments, offset):
    return _forward(static, q, k, v, q_segments, k_segments, offset)[0]


def _forward(static, q, k, v, q_segments, k_segments, offset):
    B, K, G, T, H = q.shape
    outs, normalisers = [], []
    for block in _blocks(T, k.shape[2], static):
        k_BKPH, v_BKPH = k[:, :, : block[2]], v[:, :, : block[2]]
        mask_BKMP = _mask(block, K, G, q_segments, k_segments, offset)
        scores_BKMP = jnp.where(mask_BKMP, _product("bkmh,bkph->bkmp", _rows(block, q), k_BKPH), MASKED)
        top_BKM1 = jnp.max(scores_BKMP, axis=-1, keepdims=True)
        weights_BKMP = jnp.exp(scores_BKMP - top_BKM1)
        total_BKM1 = jnp.sum(weights_BKMP, axis=-1, keepdims=True)
        out_BKMH = _product("bkmp,bkph->bkmh", weights_BKMP.astype(v.dtype), v_BKPH) / total_BKM1
        outs.append(out_BKMH.astype(q.dtype).reshape(B, K, G, -1, H))
        normalisers.append((top_BKM1 + jnp.log(total_BKM1))[..., 0])
    out = jnp.concatenate(outs, axis=3)
    return out, (q, k, v, q_segments, k_segments, offset, out, tuple(normalisers))


def _backward(static, saved, d_out):
    q, k, v, q_segments, k_segments, offset, out, normalisers = saved
    B, K, G, T, H = q.shape
    d_q, d_k, d_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    row_dot_BKGT = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
    for block, normaliser_BKM in zip(_blocks(T, k.shape[2], static), normalisers):
        start, end, seen = block
        q_BKMH, do_BKMH, k_BKPH, v_BKPH = _rows(block, q), _rows(block, d_out), k[:, :, :seen], v[:, :, :seen]
        mask_BKPM = _mask(block, K, G, q_segments, k_segments, offset, keys_first=True)
        scores_BKPM = jnp.where(mask_BKPM, _product("bkph,bkmh->bkpm", k_BKPH, q_BKMH), MASKED)
        weights_BKPM = jnp.exp(scores_BKPM - normaliser_BKM[:, :, None])
        d_weights_BKPM = _product("bkph,bkmh->bkpm", v_BKPH, do_BKMH)
        row_dot_BK1M = row_dot_BKGT[..., start:end].reshape(B, K, 1, -1)
        d_scores_BKPM = (weights_BKPM * (d_weights_BKPM - row_dot_BK1M)).astype(q.dtype)
        d_q.append(jnp.einsum("bkpm,bkph->bkmh", d_scores_BKPM, k_BKPH).reshape(B, K, G, -1, H))
        d_k = d_k.at[:, :, :seen].add(_product("bkpm,bkmh->bkph", d_scores_BKPM, q_BKMH))
        d_v = d_v.at[:, :, :seen].add(_product("bkpm,bkmh->bkph", weights_BKPM.astype(q.dtype), do_BKMH))
    none = [np.zeros(x.shape, jax.dtypes.float0) for x in (q_segments, k_segments, offset)]
    return jnp.concatenate(d_q, axis=3), d_k.astype(k.dtype), d_v.astype(v.dtype), *none


_blocked.defvjp(_forward, _backward)
