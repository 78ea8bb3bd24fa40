"""Attention on NVIDIA GPUs: cuDNN's fused kernel through `jax.nn`.

Shapes: B batch, T tokens, N query heads, K key-value heads, H head.
"""

import jax


def attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    q_segments_BT: jax.Array,
    k_segments_BT: jax.Array,
) -> jax.Array:
    """See `pomona.ops.attention.attention`. The document mask goes in as a [B, 1, T, T] boolean bias."""
    same_B1TT = (q_segments_BT[:, :, None] == k_segments_BT[:, None, :])[:, None]
    return jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, mask=same_B1TT, is_causal=True, implementation="cudnn")
