"""Causal grouped-query attention over packed documents: one entry, four ways to compute it.

Shapes: B batch, T query tokens, S key tokens, N query heads, K key-value heads, H head. A query sees a key when the
key is not later in the record and belongs to the same segment (document). Scale 1 / sqrt(H).
"""

from typing import Literal

import jax

from pomona.core.errors import UserError
from pomona.ops import attention_blocked, attention_cudnn, attention_reference, attention_splash

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
) -> jax.Array:
    """Attention output, shaped and typed like `q_BTNH`.

    Args:
        q_offset: position of the first query among the keys; a traced scalar where the sequence is sharded.
        implementation: `splash` is for TPU, `cudnn` for NVIDIA GPUs, `blocked` for CPUs, `reference` for tests.

    Raises:
        UserError: the implementation cannot take a sharded sequence.
    """
    arguments = (q_BTNH, k_BSKH, v_BSKH, q_segments_BT, k_segments_BS)
    if implementation == "reference":
        return attention_reference.attend(*arguments, q_offset)
    if implementation == "blocked":
        return attention_blocked.attend(*arguments, q_offset)
    if not isinstance(q_offset, int) or q_offset != 0:
        raise UserError(
            f"attention {implementation!r} with a sharded sequence.",
            "this kernel needs the whole sequence of queries on each device.",
            "--mesh.seq 1, or --execution.attention blocked",
        )
    kernel = attention_splash if implementation == "splash" else attention_cudnn
    return kernel.attend(*arguments)
