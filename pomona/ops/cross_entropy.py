"""Cross-entropy over a large vocabulary without ever holding all logits.

The tokens are worked on in chunks. When a gradient is wanted, a chunk's logits are turned into its gradients at once,
in the forward pass, and thrown away: memory is one chunk of logits plus one gradient of the table, and the matmul that
a recomputation would repeat is saved.

Shapes: M tokens, C tokens of a chunk, D model, V vocabulary (this device's part of it).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

UNROLLED_CHUNKS = 8


def cross_entropy(
    hidden_MD: jax.Array,
    table_VD: jax.Array,
    targets_M: jax.Array,
    weights_M: jax.Array,
    *,
    z_loss: float,
    chunk_tokens: int,
    vocab_axis: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over tokens of weight * (negative log-likelihood + z_loss * logsumexp^2).

    Args:
        vocab_axis: the mesh axis the vocabulary is sharded over, inside a `shard_map` that does not check
            replication; `table_VD` is then this device's part.

    Returns:
        Float32 scalars (total, nll, z): total = nll + z is what can be differentiated; nll, in nats, and z are for
        reports and have no gradient.
    """
    chunk = min(chunk_tokens, hidden_MD.shape[0])
    padding = -hidden_MD.shape[0] % chunk
    hidden, targets, weights = (
        jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, chunk, *x.shape[1:])
        for x in (hidden_MD, targets_M, weights_M)
    )
    total, nll, z = _sums(z_loss, vocab_axis, hidden, table_VD, targets, weights)
    return total, jax.lax.stop_gradient(nll), jax.lax.stop_gradient(z)


def _chunk_loss(z_loss, vocab_axis, hidden_CD, table_VD, targets_C, weights_C):
    """nll and z sums of one chunk, and what its gradient needs."""
    logits_CV = jnp.einsum("cd,vd->cv", hidden_CD, table_VD, preferred_element_type=jnp.float32)
    top_C1 = jnp.max(logits_CV, axis=-1, keepdims=True)
    local_C = targets_C
    if vocab_axis is not None:
        top_C1 = jax.lax.pmax(top_C1, vocab_axis)
        local_C = targets_C - jax.lax.axis_index(vocab_axis) * table_VD.shape[0]
    exp_CV = jnp.exp(logits_CV - top_C1)
    total_C1 = jnp.sum(exp_CV, axis=-1, keepdims=True)
    is_target_CV = jnp.arange(table_VD.shape[0])[None, :] == local_C[:, None]
    target_C = jnp.sum(jnp.where(is_target_CV, logits_CV, 0.0), axis=-1)
    if vocab_axis is not None:
        total_C1, target_C = jax.lax.psum((total_C1, target_C), vocab_axis)
    normaliser_C = (top_C1 + jnp.log(total_C1))[:, 0]
    nll = jnp.sum(weights_C * (normaliser_C - target_C))
    z = jnp.sum(weights_C * z_loss * normaliser_C**2)
    return (nll, z), (exp_CV, total_C1, normaliser_C, is_target_CV)


def _chunk_gradient(z_loss, vocab_axis, hidden_CD, table_VD, targets_C, weights_C):
    """The chunk's sums, d total / d hidden (this vocabulary part's share) and d total / d table, in float32 and
    transposed: a product with few rows is the faster way round on CPUs."""
    sums, (exp_CV, total_C1, normaliser_C, is_target_CV) = _chunk_loss(
        z_loss, vocab_axis, hidden_CD, table_VD, targets_C, weights_C
    )
    scale_C1 = (weights_C * (1 + 2 * z_loss * normaliser_C))[:, None] / total_C1
    d_logits_CV = exp_CV * scale_C1 - jnp.where(is_target_CV, weights_C[:, None], 0.0)
    d_logits_CV = d_logits_CV.astype(hidden_CD.dtype)
    d_hidden_CD = jnp.einsum("cv,vd->cd", d_logits_CV, table_VD)
    d_table_DV = jnp.einsum("cd,cv->dv", hidden_CD, d_logits_CV, preferred_element_type=jnp.float32)
    return sums, d_hidden_CD, d_table_DV


def _unroll(chunks: jax.Array) -> int:
    return chunks.shape[0] if chunks.shape[0] <= UNROLLED_CHUNKS else 1


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(z_loss, vocab_axis, hidden, table_VD, targets, weights):
    def step(carry, chunk):
        (nll, z), _ = _chunk_loss(z_loss, vocab_axis, chunk[0], table_VD, *chunk[1:])
        return (carry[0] + nll, carry[1] + z), None

    zero = jnp.zeros((), jnp.float32)
    (nll, z), _ = jax.lax.scan(step, (zero, zero), (hidden, targets, weights), unroll=_unroll(hidden))
    return nll + z, nll, z


def _sums_forward(z_loss, vocab_axis, hidden, table_VD, targets, weights):
    def step(carry, chunk):
        (nll, z), d_hidden_CD, d_table_DV = _chunk_gradient(z_loss, vocab_axis, chunk[0], table_VD, *chunk[1:])
        return (carry[0] + nll, carry[1] + z, carry[2] + d_table_DV), d_hidden_CD

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero, jnp.zeros(table_VD.shape[::-1], jnp.float32))
    (nll, z, d_table_DV), d_hidden = jax.lax.scan(step, start, (hidden, targets, weights), unroll=_unroll(hidden))
    # Between two barriers the transpose stays a copy; XLA would turn the product round instead.
    d_table_VD = jax.lax.optimization_barrier(jax.lax.optimization_barrier(d_table_DV).T)
    return (nll + z, nll, z), (d_hidden, d_table_VD.astype(table_VD.dtype), targets, weights)


def _sums_backward(z_loss, vocab_axis, saved, cotangents):
    d_hidden, d_table, targets, weights = saved
    scale = cotangents[0]
    if vocab_axis is not None:  # each vocabulary part was handed an equal share of the cotangent
        scale = jax.lax.psum(scale, vocab_axis)
    scaled = [(x * scale).astype(x.dtype) for x in (d_hidden, d_table)]
    return *scaled, np.zeros(targets.shape, jax.dtypes.float0), jnp.zeros_like(weights)


_sums.defvjp(_sums_forward, _sums_backward)
