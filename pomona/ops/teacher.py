"""What a student learns from its teacher's logits, which never exist for more than a chunk of tokens: the most likely
token of each prediction, or the divergence of the two models' distributions.

Shapes: M tokens, C tokens of a chunk, D model (the teacher's may be another), V vocabulary (this device's part of it).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pomona.ops.cross_entropy import UNROLLED_CHUNKS

BEYOND = np.iinfo(np.int32).max


def top_token(
    hidden_MD: jax.Array, table_VD: jax.Array, *, chunk_tokens: int, vocab_axis: str | None = None
) -> jax.Array:
    """The most likely token of every prediction, int32 [M]; the lower id where two are equal. Has no gradient.

    Args:
        vocab_axis: as in `ops.cross_entropy`.
    """

    def chunk(hidden_CD: jax.Array) -> jax.Array:
        logits_CV = jnp.einsum("cd,vd->cv", hidden_CD, table_VD, preferred_element_type=jnp.float32)
        top_C = jnp.argmax(logits_CV, axis=-1).astype(jnp.int32)
        if vocab_axis is None:
            return top_C
        value_C = jnp.max(logits_CV, axis=-1)
        token_C = top_C + jax.lax.axis_index(vocab_axis) * table_VD.shape[0]
        best_C = jax.lax.pmax(value_C, vocab_axis)
        return jax.lax.pmin(jnp.where(value_C == best_C, token_C, BEYOND), vocab_axis)

    (chunks,) = _chunks(chunk_tokens, hidden_MD)
    return jax.lax.stop_gradient(jax.lax.map(chunk, chunks).reshape(-1)[: hidden_MD.shape[0]])


def taught_cross_entropy(
    hidden_MD: jax.Array,
    table_VD: jax.Array,
    teacher_hidden_MD: jax.Array,
    teacher_table_VD: jax.Array,
    targets_M: jax.Array,
    weights_M: jax.Array,
    *,
    share: float,
    temperature: float,
    z_loss: float,
    chunk_tokens: int,
    vocab_axis: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over tokens of weight * (share * t^2 * KL(teacher || student) + (1 - share) * negative log-likelihood +
    z_loss * logsumexp^2), the two distributions of the divergence taken at temperature t (Hinton et al. 2015,
    "Distilling the Knowledge in a Neural Network").

    Args:
        vocab_axis: as in `ops.cross_entropy`; both tables are sharded over it.

    Returns:
        Float32 scalars (total, nll, z) as `ops.cross_entropy` gives them. The gradient is the student's alone.
    """
    hidden, teacher, targets, weights = _chunks(chunk_tokens, hidden_MD, teacher_hidden_MD, targets_M, weights_M)
    how = (share, temperature, z_loss, vocab_axis)
    tables = table_VD, jax.lax.stop_gradient(teacher_table_VD)
    total, nll, z = _sums(how, hidden, tables[0], jax.lax.stop_gradient(teacher), tables[1], targets, weights)
    return total, jax.lax.stop_gradient(nll), jax.lax.stop_gradient(z)


def _chunks(chunk_tokens, *arrays):
    """Arrays [M, ...] as [chunks, C, ...], the last chunk filled with zeros."""
    chunk = min(chunk_tokens, arrays[0].shape[0])
    padding = -arrays[0].shape[0] % chunk
    pad = lambda x: jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    return [pad(x).reshape(-1, chunk, *x.shape[1:]) for x in arrays]


def _distribution(logits_CV, vocab_axis):
    """(probabilities_CV, log-normaliser_C) over the whole vocabulary."""
    top_C1 = jnp.max(logits_CV, axis=-1, keepdims=True)
    if vocab_axis is not None:
        top_C1 = jax.lax.pmax(top_C1, vocab_axis)
    exp_CV = jnp.exp(logits_CV - top_C1)
    total_C1 = jnp.sum(exp_CV, axis=-1, keepdims=True)
    if vocab_axis is not None:
        total_C1 = jax.lax.psum(total_C1, vocab_axis)
    return exp_CV / total_C1, (top_C1 + jnp.log(total_C1))[:, 0]


def _chunk_loss(how, hidden_CD, table_VD, teacher_CD, teacher_table_VD, targets_C, weights_C):
    """total, nll and z sums of one chunk, and d total / d logits of the student."""
    share, temperature, z_loss, vocab_axis = how
    product = partial(jnp.einsum, "cd,vd->cv", preferred_element_type=jnp.float32)
    logits_CV, taught_CV = product(hidden_CD, table_VD), product(teacher_CD, teacher_table_VD) / temperature
    likely_CV, normaliser_C = _distribution(logits_CV, vocab_axis)
    wanted_CV, wanted_normaliser_C = _distribution(taught_CV, vocab_axis)
    soft_CV, soft_normaliser_C = likely_CV, normaliser_C
    if temperature != 1:
        soft_CV, soft_normaliser_C = _distribution(logits_CV / temperature, vocab_axis)
    local_C = targets_C
    if vocab_axis is not None:
        local_C = targets_C - jax.lax.axis_index(vocab_axis) * table_VD.shape[0]
    is_target_CV = jnp.arange(table_VD.shape[0])[None, :] == local_C[:, None]
    target_C = jnp.sum(jnp.where(is_target_CV, logits_CV, 0.0), axis=-1)
    distance_C = jnp.sum(wanted_CV * (taught_CV - logits_CV / temperature), axis=-1)
    if vocab_axis is not None:
        target_C, distance_C = jax.lax.psum((target_C, distance_C), vocab_axis)
    nll_C = normaliser_C - target_C
    divergence_C = distance_C - wanted_normaliser_C + soft_normaliser_C
    z = jnp.sum(weights_C * z_loss * normaliser_C**2)
    total = jnp.sum(weights_C * (share * temperature**2 * divergence_C + (1 - share) * nll_C)) + z
    own_C1 = (1 - share + 2 * z_loss * normaliser_C)[:, None]
    d_logits_CV = share * temperature * (soft_CV - wanted_CV) + own_C1 * likely_CV
    d_logits_CV = weights_C[:, None] * (d_logits_CV - jnp.where(is_target_CV, 1 - share, 0.0))
    return (total, jnp.sum(weights_C * nll_C), z), d_logits_CV


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(how, hidden, table_VD, teacher, teacher_table_VD, targets, weights):
    def step(carry, chunk):
        sums, _ = _chunk_loss(how, chunk[0], table_VD, chunk[1], teacher_table_VD, *chunk[2:])
        return jax.tree.map(jnp.add, carry, sums), None

    sums, _ = jax.lax.scan(step, _zeros(), (hidden, teacher, targets, weights), unroll=_unroll(hidden))
    return sums


def _sums_forward(how, hidden, table_VD, teacher, teacher_table_VD, targets, weights):
    def step(carry, chunk):
        sums, d_logits_CV = _chunk_loss(how, chunk[0], table_VD, chunk[1], teacher_table_VD, *chunk[2:])
        d_logits_CV = d_logits_CV.astype(hidden.dtype)
        d_hidden_CD = jnp.einsum("cv,vd->cd", d_logits_CV, table_VD)
        d_table_DV = jnp.einsum("cd,cv->dv", chunk[0], d_logits_CV, preferred_element_type=jnp.float32)
        return jax.tree.map(jnp.add, carry, (sums, d_table_DV)), d_hidden_CD

    start = _zeros(), jnp.zeros(table_VD.shape[::-1], jnp.float32)
    (sums, d_table_DV), d_hidden = jax.lax.scan(
        step, start, (hidden, teacher, targets, weights), unroll=_unroll(hidden)
    )
    # Between two barriers the transpose stays a copy, as in `ops.cross_entropy`.
    d_table_VD = jax.lax.optimization_barrier(jax.lax.optimization_barrier(d_table_DV).T)
    return sums, (d_hidden, d_table_VD.astype(table_VD.dtype), weights)


def _sums_backward(how, saved, cotangents):
    d_hidden, d_table, weights = saved
    scale, vocab_axis = cotangents[0], how[-1]
    if vocab_axis is not None:  # each vocabulary part was handed an equal share of the cotangent
        scale = jax.lax.psum(scale, vocab_axis)
    scaled = [(x * scale).astype(x.dtype) for x in (d_hidden, d_table)]
    return *scaled, None, None, None, jnp.zeros_like(weights)  # the teacher learns nothing


def _zeros():
    return (jnp.zeros((), jnp.float32),) * 3


def _unroll(chunks: jax.Array) -> int:
    return chunks.shape[0] if chunks.shape[0] <= UNROLLED_CHUNKS else 1


_sums.defvjp(_sums_forward, _sums_backward)
