"""Attention in blocks of queries that compute only the keys they can see; for CPUs, correct anywhere.

A block's scores live only while the block is worked on: the backward pass makes them again from the saved
log-normalisers (Dao 2023, FlashAttention-2, section 3.1), so memory grows with T and not with T squared, and the
masked upper half is never multiplied. Blocks are unrolled: XLA:CPU runs no loop as fast as straight code.

Shapes: B batch, T query tokens, S key tokens, K key-value heads, G query heads per key-value head, H head,
M = G * (queries in a block), P = keys that the block can see.
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


def _scores(block, q, k, q_segments, k_segments, offset):
    """Masked scores_BKMP in float32, and the block's queries q_BKMH."""
    start, end, seen = block
    B, K, G, _, H = q.shape
    q_BKMH = q[:, :, :, start:end].reshape(B, K, G * (end - start), H)
    raw = jnp.einsum("bkmh,bkph->bkmp", q_BKMH, k[:, :, :seen], preferred_element_type=jnp.float32)
    q_index = jnp.arange(start, end) + offset
    mask = allowed(q_index, jnp.arange(seen), q_segments[:, start:end], k_segments[:, :seen])
    mask_BKGQP = jnp.broadcast_to(mask[:, None, None], (B, K, G, end - start, seen))
    return jnp.where(mask_BKGQP.reshape(raw.shape), raw, MASKED), q_BKMH


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(static, q, k, v, q_segments, k_segments, offset):
    return _forward(static, q, k, v, q_segments, k_segments, offset)[0]


def _forward(static, q, k, v, q_segments, k_segments, offset):
    B, K, G, T, H = q.shape
    outs, normalisers = [], []
    for block in _blocks(T, k.shape[2], static):
        scores, _ = _scores(block, q, k, q_segments, k_segments, offset)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = jnp.einsum(
            "bkmp,bkph->bkmh", weights.astype(v.dtype), v[:, :, : block[2]], preferred_element_type=jnp.float32
        )
        outs.append((out / total).astype(q.dtype).reshape(B, K, G, -1, H))
        normalisers.append((top + jnp.log(total))[..., 0])
    out = jnp.concatenate(outs, axis=3)
    return out, (q, k, v, q_segments, k_segments, offset, out, tuple(normalisers))


def _backward(static, saved, d_out):
    q, k, v, q_segments, k_segments, offset, out, normalisers = saved
    B, K, G, T, H = q.shape
    blocks = _blocks(T, k.shape[2], static)
    d_q, d_k, d_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    row_dot = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)  # B K G T
    for block, normaliser in zip(blocks, normalisers):
        start, end, seen = block
        scores, q_BKMH = _scores(block, q, k, q_segments, k_segments, offset)
        weights = jnp.exp(scores - normaliser[..., None])
        do_BKMH = d_out[:, :, :, start:end].reshape(q_BKMH.shape)
        d_weights = jnp.einsum("bkmh,bkph->bkmp", do_BKMH, v[:, :, :seen], preferred_element_type=jnp.float32)
        delta = row_dot[..., start:end].reshape(B, K, -1, 1)
        d_scores = (weights * (d_weights - delta)).astype(q.dtype)
        d_q.append(jnp.einsum("bkmp,bkph->bkmh", d_scores, k[:, :, :seen]).reshape(B, K, G, -1, H))
        part = partial(jnp.einsum, "bkmp,bkmh->bkph", preferred_element_type=jnp.float32)
        d_k = d_k.at[:, :, :seen].add(part(d_scores, q_BKMH))
        d_v = d_v.at[:, :, :seen].add(part(weights.astype(q.dtype), do_BKMH))
    none = [np.zeros(x.shape, jax.dtypes.float0) for x in (q_segments, k_segments, offset)]
    return jnp.concatenate(d_q, axis=3), d_k.astype(k.dtype), d_v.astype(v.dtype), *none


_blocked.defvjp(_forward, _backward)
