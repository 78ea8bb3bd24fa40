"""Attention on TPU: the splash kernel of JAX's Pallas library, block-sparse over the causal mask.

Shapes: B batch, T tokens, N query heads, K key-value heads, H head.
"""

import jax


def attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    q_segments_BT: jax.Array,
    k_segments_BT: jax.Array,
    *,
    block: int = 1024,
    interpret: bool = False,
) -> jax.Array:
    """See `pomona.ops.attention.attention`. `block` queries and keys are worked on at a time; T a multiple of 128."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads, head_dim = q_BTNH.shape[1:]
    size = min(block, length)
    sizes = splash.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        use_fused_bwd_kernel=True,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((length, length)) for _ in range(heads)])
    kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)

    def one(q_TNH, k_TKH, v_TKH, q_segments_T, k_segments_T):
        segments = splash.SegmentIds(q_segments_T, k_segments_T)
        q, k, v = (x.swapaxes(0, 1) for x in (q_TNH * head_dim**-0.5, k_TKH, v_TKH))
        return kernel(q, k, v, segment_ids=segments).swapaxes(0, 1)

    return jax.vmap(one)(q_BTNH, k_BTKH, v_BTKH, q_segments_BT, k_segments_BT).astype(q_BTNH.dtype)
