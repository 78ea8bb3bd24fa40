"""Attention of new tokens over what their sequences have in the cache, and over each other.

On TPUs by one kernel (`ops/attention_cached.py`), which reads a sequence's filled columns alone; elsewhere as two
products over as many columns as the fullest sequence has.

Shapes: B sequences of the cache, R sequences of this call, T tokens of this call, S cache columns, L layers, N query
heads, K key-value heads, G = N / K, H head.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pomona.infer.cache import KEPT, Cache, Int8, kept
from pomona.model.config import Execution
from pomona.model.decoder import Attend
from pomona.ops import attention_cached
from pomona.ops.attention_reference import MASKED
from pomona.parallel import rules

HEADS, NEW = (None, None, "heads", None), (None, None, "kv_heads", None)
"""The logical axes of queries, and of new keys and values."""


def over_cache(
    cache: Cache, slot_R: jax.Array | None, first_R: jax.Array, span: int, execution: Execution
) -> tuple[Attend, Any]:
    """What `run_layers` calls for every layer, and the state that it hands over by layer.

    Args:
        slot_R: which sequences of the cache these are; None for all, in their order.
        first_R: how many columns each has.
        span: columns that are looked at; no sequence that is computed has more.

    Returns:
        Attention, whose new state are the new keys and values as the cache keeps them, and the state.
    """
    unrolled = isinstance(cache.keys, list)
    layers: Any = list(zip(cache.keys, cache.values)) if unrolled else (cache.keys, cache.values)
    if execution.attention != "splash":
        return _by_products(slot_R, first_R, span), layers
    if unrolled:
        kernel = lambda q, k, v, state: _by_kernel(q, k, v, state, None, slot_R, first_R, span)
        return kernel, layers
    kernel = lambda q, k, v, layer: _by_kernel(q, k, v, layers, layer, slot_R, first_R, span)
    return kernel, jnp.arange(jax.tree.leaves(layers)[0].shape[0])


def _by_kernel(
    q_RTNH: jax.Array,
    k_RTKH: jax.Array,
    v_RTKH: jax.Array,
    state: Any,
    layer: jax.Array | None,
    slot_R: jax.Array | None,
    first_R: jax.Array,
    span: int,
) -> tuple[jax.Array, Any]:
    """`state` is the whole cache, of which `layer` is looked at, or one layer of it where that is None."""
    leaves, structure = jax.tree.flatten(state)
    first_axis = () if layer is None else ("layers",)
    kept_axes = [(*first_axis, *KEPT[: leaf.ndim - len(first_axis)]) for leaf in leaves]
    new_axes = [KEPT[: len(axes) - len(first_axis)] for axes in kept_axes]
    S = leaves[0].shape[-2]
    filled_R = jnp.where(first_R < S, first_R, 0)  # who is at the end computes nothing that anybody reads
    sequence_R = jnp.arange(len(first_R)) if slot_R is None else slot_R

    def local(q: jax.Array, k: jax.Array, v: jax.Array, sequence: Any, filled: Any, layer: Any, *leaves: Any) -> Any:
        old = jax.tree.unflatten(structure, leaves if first_axis else [leaf[None] for leaf in leaves])
        new = kept(old[0], k), kept(old[1], v)
        out = attention_cached.attend(q, _columns(*old), _columns(*new), layer, sequence, filled, span)
        return out, *jax.tree.leaves(new)

    run = rules.on_shards(local, [HEADS, NEW, NEW, (None,), (None,), (), *kept_axes], [HEADS, *new_axes])
    number = jnp.zeros((), jnp.int32) if layer is None else layer
    out_RTNH, *new = run(q_RTNH, k_RTKH, v_RTKH, sequence_R, filled_R, number, *leaves)
    return out_RTNH, jax.tree.unflatten(structure, new)


def _columns(keys: jax.Array | Int8, values: jax.Array | Int8) -> attention_cached.Columns:
    if isinstance(keys, Int8) and isinstance(values, Int8):
        return attention_cached.Columns(keys.integers, values.integers, keys.scales, values.scales)
    assert not isinstance(keys, Int8) and not isinstance(values, Int8), "both sides are kept alike"
    return attention_cached.Columns(keys, values)


def _by_products(slot_R: jax.Array | None, first_R: jax.Array, span: int) -> Attend:
    R, every = len(first_R), slot_R is None
    assert every or R == 1, "one slot, or all"
    sequence_R = jnp.arange(R) if slot_R is None else slot_R

    def attend_slots(q_RTNH: jax.Array, k_RTKH: jax.Array, v_RTKH: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        leaves, structure = jax.tree.flatten(state)
        kept_axes = [KEPT[: leaf.ndim] for leaf in leaves]
        T = q_RTNH.shape[1]

        def local(q: jax.Array, k: jax.Array, v: jax.Array, slot_R: jax.Array, first_R: jax.Array, *leaves: Any) -> Any:
            old = jax.tree.unflatten(structure, leaves)
            new = kept(old[0], k), kept(old[1], v)
            rows = lambda x: (x if every else jax.lax.dynamic_slice_in_dim(x, slot_R[0], 1, axis=0))[:, :, :span]
            before_RTS = jnp.broadcast_to((jnp.arange(span) < first_R[:, None])[:, None], (R, T, span))
            among_RTT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (R, T, T))
            keys, values = jax.tree.map(rows, old)
            return attend(q, Seen(keys, values, before_RTS), Seen(*new, among_RTT)), *jax.tree.leaves(new)

        run = rules.on_shards(local, [HEADS, NEW, NEW, (None,), (None,), *kept_axes], [HEADS, *kept_axes])
        out_RTNH, *new = run(q_RTNH, k_RTKH, v_RTKH, sequence_R, first_R, *leaves)
        return out_RTNH, jax.tree.unflatten(structure, new)

    return attend_slots


class Seen(NamedTuple):
    """Keys and values [B, K, S, H] of some columns, and which of them each token sees."""

    keys: jax.Array | Int8
    values: jax.Array | Int8
    visible_BTS: jax.Array


def attend(q_BTNH: jax.Array, *parts: Seen) -> jax.Array:
    """Attention over all columns of all parts, as if they lay side by side; float32 scores."""
    B, T, N, H = q_BTNH.shape
    K = jax.tree.leaves(parts[0].keys)[0].shape[1]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * H**-0.5
    weights = jax.nn.softmax(jnp.concatenate([_scores(q_BTKGH, part) for part in parts], axis=-1), axis=-1)
    out_BKGTH, first = jnp.zeros((), q_BTNH.dtype), 0
    for part in parts:
        last = first + part.visible_BTS.shape[-1]
        out_BKGTH = out_BKGTH + _weighed(weights[..., first:last], part.values, q_BTNH.dtype)
        first = last
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _scores(q_BTKGH: jax.Array, part: Seen) -> jax.Array:
    """[B, K, G, T, S], float32."""
    numbers, scales = (part.keys.integers, part.keys.scales) if isinstance(part.keys, Int8) else (part.keys, None)
    numbers = numbers.astype(q_BTKGH.dtype)  # bfloat16 holds all of -127 to 127
    scores = jnp.einsum("btkgh,bksh->bkgts", q_BTKGH, numbers, preferred_element_type=jnp.float32)
    return jnp.where(part.visible_BTS[:, None, None], _times(scores, scales), MASKED)


def _weighed(weights_BKGTS: jax.Array, values: jax.Array | Int8, dtype: Any) -> jax.Array:
    numbers, scales = (values.integers, values.scales) if isinstance(values, Int8) else (values, None)
    # Turned afterwards: as a product into the order of the tokens, XLA:CPU takes ten times as long.
    return jnp.einsum("bkgts,bksh->bkgth", _times(weights_BKGTS, scales).astype(dtype), numbers.astype(dtype))


def _times(x_BKGTS: jax.Array, scales_BKS: jax.Array | None) -> jax.Array:
    return x_BKGTS if scales_BKS is None else x_BKGTS * scales_BKS[:, :, None, None]
