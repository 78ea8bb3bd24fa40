"""Attention as its definition reads, all scores at once. Every faster path is tested against this one."""

import jax
import jax.numpy as jnp

MASKED = -1e30
"""The score of a forbidden key: finite, so that a row of them stays finite."""


def allowed(
    q_index_T: jax.Array, k_index_S: jax.Array, q_segments_BT: jax.Array, k_segments_BS: jax.Array
) -> jax.Array:
    """mask_BTS: true where a query may see a key."""
    causal_TS = k_index_S[None, :] <= q_index_T[:, None]
    return causal_TS & (q_segments_BT[:, :, None] == k_segments_BS[:, None, :])


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    q_segments_BT: jax.Array,
    k_segments_BS: jax.Array,
    q_offset: jax.Array | int,
) -> jax.Array:
    """See `pomona.ops.attention.attention`. Scores and softmax in float32."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    mask_BTS = allowed(jnp.arange(T) + q_offset, jnp.arange(S), q_segments_BT, k_segments_BS)
    scores = jnp.where(mask_BTS[:, None, None], scores * H**-0.5, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v_BSKH).reshape(B, T, N, H).astype(q_BTNH.dtype)
