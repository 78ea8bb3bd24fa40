"""Attention on TPU: the splash kernel of JAX's Pallas library, block-sparse over the causal mask.

Shapes: B batch, T query tokens, S key tokens, N query heads, K key-value heads, H head.
"""

from typing import Any

import jax

from pomona.core.errors import UserError


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    q_segments_BT: jax.Array,
    k_segments_BS: jax.Array,
    q_offset: jax.Array | int = 0,
    *,
    block: int = 1024,
    name: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """See `pomona.ops.attention.attention`. `block` queries and keys are worked on at a time; T a multiple of 128.

    The queries are one of S / T equal shards of the sequence. `name` is what the output and the log-normalisers are
    called for `jax.checkpoint`.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T, N, H = q_BTNH.shape[1:]
    S = k_BSKH.shape[1]
    shards, size = S // T, min(block, T)
    if S % shards**2:
        raise UserError(
            f"attention 'splash' over {S} keys in {shards} parts.",
            "the square of the number of parts divides the keys: splash lays its mask out so.",
            "a smaller --mesh.seq: each of its shards has two parts.",
        )
    sizes = splash.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        use_fused_bwd_kernel=True,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((S, S), shard_count=shards) for _ in range(N)])
    kernel = splash.make_splash_mha(
        mask, block_sizes=sizes, head_shards=1, q_seq_shards=shards, residual_checkpoint_name=name, interpret=interpret
    )
    if shards > 1:
        kernel = _of_shard(kernel, q_offset // T, shards)

    def one(q_TNH, k_SKH, v_SKH, q_segments_T, k_segments_S):
        segments = splash.SegmentIds(q_segments_T, k_segments_S)
        q, k, v = (x.swapaxes(0, 1) for x in (q_TNH * H**-0.5, k_SKH, v_SKH))
        return kernel(q, k, v, segment_ids=segments).swapaxes(0, 1)

    return jax.vmap(one)(q_BTNH, k_BSKH, v_BSKH, q_segments_BT, k_segments_BS).astype(q_BTNH.dtype)


def _of_shard(kernel: Any, index: jax.Array | int, shards: int) -> Any:
    """The kernel with the part of its tables that is for one shard of the queries, as `shard_map` would hand it out.

    The grids, by heads and query blocks, are cut along their second dimension; the list of query positions has one."""

    def part(table: jax.Array | None, dimension: int) -> jax.Array | None:
        if table is None:
            return None
        length = table.shape[dimension] // shards
        return jax.lax.dynamic_slice_in_dim(table, index * length, length, dimension)

    def parts(info: Any) -> Any:
        grids = {name: part(getattr(info, name), 1) for name in ("data_next", "mask_next", "block_mask")}
        return info._replace(**grids, q_sequence=part(info.q_sequence, 0))

    return type(kernel)(parts(kernel.fwd_mask_info), None, parts(kernel.dkv_mask_info), **kernel.kwargs)
