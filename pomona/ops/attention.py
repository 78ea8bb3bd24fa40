"""Causal grouped-query attention over packed documents: one entry, four ways to compute it.

Shapes: B batch, T query tokens, S key tokens, N query heads, K key-value heads, H head. A query sees a key when the
key is not later in the record and belongs to the same segment (document). Scale 1 / sqrt(H).
"""

from typing import Literal

import jax
from jax.ad_checkpoint import checkpoint_name

from pomona.core.errors import UserError
from pomona.ops import attention_blocked, attention_cudnn, attention_reference, attention_splash

NAME = "attention"
"""What the output is called for policies of recomputation; splash names its log-normalisers too."""

Implementation = Literal["reference", "blocked", "splash", "cudnn"]


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    q_segments_BT: jax.Array,
    k_segments_BS: jax.Array,
    *,
    q_offset: jax.Array | int = 0,
    implementation: Implementation,
    block_tokens: int = 1024,
) -> jax.Array:
    """Attention output, shaped and typed like `q_BTNH`.

    Args:
        q_offset: position of the first query among the keys; a traced scalar where the sequence is sharded.
        implementation: `splash` is for TPU, `cudnn` for NVIDIA GPUs, `blocked` for CPUs, `reference` for tests.
        block_tokens: of splash, whose blocks have to fit into on-chip memory.

    Raises:
        UserError: the implementation cannot take a sharded sequence.
    """
    arguments = (q_BTNH, k_BSKH, v_BSKH, q_segments_BT, k_segments_BS)
    if implementation == "reference":
        return checkpoint_name(attention_reference.attend(*arguments, q_offset), NAME)
    if implementation == "blocked":
        return checkpoint_name(attention_blocked.attend(*arguments, q_offset), NAME)
    if implementation == "splash":
        return attention_splash.attend(*arguments, q_offset, block=block_tokens, name=NAME)
    if not isinstance(q_offset, int) or q_offset != 0:
        raise UserError(
            "attention 'cudnn' with a sharded sequence.",
            "this kernel needs the whole sequence of queries on each device.",
            "--mesh.seq 1, or --execution.attention blocked",
        )
    return checkpoint_name(attention_cudnn.attend(*arguments), NAME)
