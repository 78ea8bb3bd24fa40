"""Cross-entropy over a large vocabulary without ever holding all logits.

The tokens are worked on in chunks. When a gradient is wanted, a chunk's logits are turned into its gradients at once,
in the forward pass, and thrown away: memory is one chunk of logits plus one gradient of the table, and the matmul that
a recomputation would repeat is saved.

A second target may share each token with the first: `taught_share * onehot(taught) + (1 - taught_share) *
onehot(target)`, with the same softmax. That is how a student is distilled from its teacher's most likely token.

Shapes: M tokens, C tokens of a chunk, D model, V vocabulary (this device's part of it).
"""

from functools import partial, reduce
from operator import add

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
    taught_M: jax.Array | None = None,
    taught_share: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over tokens of weight * (cross-entropy + z_loss * logsumexp^2).

    Args:
        taught_M: a second target of every token, which has `taught_share` of it (AFM report, section 3.2.1: 0.9 for the
            teacher's most likely token). None: the target is all that counts.
        vocab_axis: the mesh axis the vocabulary is sharded over, inside a `shard_map` that does not check
            replication; `table_VD` is then this device's part.

    Returns:
        Float32 scalars (total, nll, z): total, cross-entropy and z, is what can be differentiated; nll, the negative
        log-likelihood of `targets_M` alone, in nats, and z are for reports and have no gradient.
    """
    chunk = min(chunk_tokens, hidden_MD.shape[0])
    padding = -hidden_MD.shape[0] % chunk
    hidden, targets, weights, taught = jax.tree.map(
        lambda x: jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, chunk, *x.shape[1:]),
        (hidden_MD, targets_M, weights_M, taught_M),
    )
    total, nll, z = _sums(z_loss, vocab_axis, taught_share, hidden, table_VD, targets, weights, taught)
    return total, jax.lax.stop_gradient(nll), jax.lax.stop_gradient(z)


def _chunk_loss(z_loss, vocab_axis, share, hidden_CD, table_VD, targets_C, weights_C, taught_C):
    """nll and z sums of one chunk, with a second target what it adds to nll, and what the chunk's gradient needs."""
    logits_CV = jnp.einsum("cd,vd->cv", hidden_CD, table_VD, preferred_element_type=jnp.float32)
    top_C1 = jnp.max(logits_CV, axis=-1, keepdims=True)
    wanted = [targets_C] if taught_C is None else [targets_C, taught_C]
    if vocab_axis is not None:
        top_C1 = jax.lax.pmax(top_C1, vocab_axis)
        wanted = [ids_C - jax.lax.axis_index(vocab_axis) * table_VD.shape[0] for ids_C in wanted]
    exp_CV = jnp.exp(logits_CV - top_C1)
    total_C1 = jnp.sum(exp_CV, axis=-1, keepdims=True)
    hits = [jnp.arange(table_VD.shape[0])[None, :] == local_C[:, None] for local_C in wanted]
    found = [jnp.sum(jnp.where(hit_CV, logits_CV, 0.0), axis=-1) for hit_CV in hits]
    if vocab_axis is not None:
        total_C1, found = jax.lax.psum((total_C1, found), vocab_axis)
    normaliser_C = (top_C1 + jnp.log(total_C1))[:, 0]
    nll = jnp.sum(weights_C * (normaliser_C - found[0]))
    z = jnp.sum(weights_C * z_loss * normaliser_C**2)
    more = [jnp.sum(weights_C * share * (found[0] - taught_logit_C)) for taught_logit_C in found[1:]]
    return (nll, z, *more), (exp_CV, total_C1, normaliser_C, hits)


def _chunk_gradient(z_loss, vocab_axis, share, hidden_CD, table_VD, targets_C, weights_C, taught_C):
    """The chunk's sums, d total / d hidden (this vocabulary part's share) and d total / d table, in float32 and
    transposed: a product with few rows is the faster way round on CPUs."""
    sums, (exp_CV, total_C1, normaliser_C, hits) = _chunk_loss(
        z_loss, vocab_axis, share, hidden_CD, table_VD, targets_C, weights_C, taught_C
    )
    scale_C1 = (weights_C * (1 + 2 * z_loss * normaliser_C))[:, None] / total_C1
    parts = [weights_C] if taught_C is None else [weights_C * (1 - share), weights_C * share]
    d_logits_CV = exp_CV * scale_C1
    for hit_CV, part_C in zip(hits, parts):
        d_logits_CV = d_logits_CV - jnp.where(hit_CV, part_C[:, None], 0.0)
    d_logits_CV = d_logits_CV.astype(hidden_CD.dtype)
    d_hidden_CD = jnp.einsum("cv,vd->cd", d_logits_CV, table_VD)
    d_table_DV = jnp.einsum("cd,cv->dv", hidden_CD, d_logits_CV, preferred_element_type=jnp.float32)
    return sums, d_hidden_CD, d_table_DV


def _unroll(chunks: jax.Array) -> int:
    return chunks.shape[0] if chunks.shape[0] <= UNROLLED_CHUNKS else 1


def _zeros(taught):
    return (jnp.zeros((), jnp.float32),) * (2 if taught is None else 3)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sums(z_loss, vocab_axis, share, hidden, table_VD, targets, weights, taught):
    def step(carry, chunk):
        sums, _ = _chunk_loss(z_loss, vocab_axis, share, chunk[0], table_VD, *chunk[1:])
        return tuple(map(add, carry, sums)), None

    sums, _ = jax.lax.scan(step, _zeros(taught), (hidden, targets, weights, taught), unroll=_unroll(hidden))
    return reduce(add, sums), *sums[:2]


def _sums_forward(z_loss, vocab_axis, share, hidden, table_VD, targets, weights, taught):
    def step(carry, chunk):
        sums, d_hidden_CD, d_table_DV = _chunk_gradient(z_loss, vocab_axis, share, chunk[0], table_VD, *chunk[1:])
        return (*map(add, carry[:-1], sums), carry[-1] + d_table_DV), d_hidden_CD

    start = (*_zeros(taught), jnp.zeros(table_VD.shape[::-1], jnp.float32))
    chunks = (hidden, targets, weights, taught)
    (*sums, d_table_DV), d_hidden = jax.lax.scan(step, start, chunks, unroll=_unroll(hidden))
    # Between two barriers the transpose stays a copy; XLA would turn the product round instead.
    d_table_VD = jax.lax.optimization_barrier(jax.lax.optimization_barrier(d_table_DV).T)
    return (reduce(add, sums), *sums[:2]), (d_hidden, d_table_VD.astype(table_VD.dtype), targets, weights, taught)


def _sums_backward(z_loss, vocab_axis, share, saved, cotangents):
    d_hidden, d_table, targets, weights, taught = saved
    scale = cotangents[0]
    if vocab_axis is not None:  # each vocabulary part was handed an equal share of the cotangent
        scale = jax.lax.psum(scale, vocab_axis)
    scaled = [(x * scale).astype(x.dtype) for x in (d_hidden, d_table)]
    none = lambda ids: np.zeros(ids.shape, jax.dtypes.float0)
    return *scaled, none(targets), jnp.zeros_like(weights), jax.tree.map(none, taught)


_sums.defvjp(_sums_forward, _sums_backward)
