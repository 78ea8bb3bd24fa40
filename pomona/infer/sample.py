"""From logits to the next token: greedy, temperature, top-k, top-p, for each sequence as it has chosen. Choices are
data: no other choice compiles anything anew.

Shapes: B sequences, V vocabulary, C the most likely tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pomona.model.sampling import Sampling

Array = jax.Array | np.ndarray
LOOK = 512
"""How many tokens top-k and top-p look at before they sort all."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choices:
    """How each sequence's next token is chosen."""

    seed_B: Array  # uint32
    temperature_B: Array  # float32
    top_k_B: Array  # int32
    top_p_B: Array  # float32


class Likely(NamedTuple):
    """Log-probabilities in nats, float32: of a token, and of the most likely ones."""

    own_B: jax.Array
    tokens_BC: jax.Array  # int32
    others_BC: jax.Array


def choices(samplings: Sequence[Sampling], seeds: Sequence[int]) -> Choices:
    """The choices of some sequences."""
    column = lambda name, dtype: np.array([getattr(sampling, name) for sampling in samplings], dtype)
    return Choices(
        np.array([seed % 2**32 for seed in seeds], np.uint32),
        column("temperature", np.float32),
        column("top_k", np.int32),
        column("top_p", np.float32),
    )


def sample(logits_BV: jax.Array, position_B: jax.Array, chosen: Choices) -> jax.Array:
    """Token ids [B], int32. The filters apply in the usual order: temperature, then top-k, then top-p.

    top-p keeps the smallest set of most likely tokens that reaches it (Holtzman et al. 2020), one at least. Of equally
    likely tokens the lower id comes first, so that ties never widen a set. What a sequence draws depends on its logits,
    its seed and the position it draws for, not on the other sequences.
    """
    best_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

    def drawn() -> jax.Array:
        keys_B = jax.vmap(lambda seed, place: jax.random.fold_in(jax.random.key(seed), place))(
            chosen.seed_B, position_B
        )
        noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(keys_B)
        hot_B1 = jnp.where(chosen.temperature_B > 0, chosen.temperature_B, 1)[:, None]
        scaled_BV = logits_BV.astype(jnp.float32) / hot_B1
        filtered_B = (chosen.top_k_B > 0) | (chosen.top_p_B < 1)
        open_BV = jax.lax.cond(
            jnp.any(filtered_B & (chosen.temperature_B > 0)),
            lambda: _kept(scaled_BV, chosen) | ~filtered_B[:, None],
            lambda: jnp.ones(scaled_BV.shape, bool),
        )
        found_B = jnp.argmax(jnp.where(open_BV, scaled_BV + noise_BV, -jnp.inf), axis=-1).astype(jnp.int32)
        return jnp.where(chosen.temperature_B > 0, found_B, best_B)

    return jax.lax.cond(jnp.any(chosen.temperature_B > 0), drawn, lambda: best_B)


def likely(logits_BV: jax.Array, token_B: jax.Array, count: int) -> Likely:
    """The log-probabilities of given tokens, and of the `count` most likely."""
    logits_BV = logits_BV.astype(jnp.float32)
    normalizer_B1 = jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)
    best_BC, ids_BC = jax.lax.top_k(logits_BV, min(count, logits_BV.shape[-1]))
    own_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    return Likely(own_B - normalizer_B1[:, 0], ids_BC.astype(jnp.int32), best_BC - normalizer_B1)


def _kept(scaled_BV: jax.Array, chosen: Choices) -> jax.Array:
    """bool [B, V]: the tokens that top-k and top-p leave."""
    V = scaled_BV.shape[-1]
    if V <= LOOK:
        least_B, last_B, _ = _border(scaled_BV, chosen, V)
    else:
        few = _border(scaled_BV, chosen, LOOK)
        least_B, last_B, _ = jax.lax.cond(jnp.all(few[2]), lambda: few, lambda: _border(scaled_BV, chosen, V))
    equal_BV = (scaled_BV == least_B[:, None]) & (jnp.arange(V) <= last_B[:, None])
    return (scaled_BV > least_B[:, None]) | equal_BV


def _border(scaled_BV: jax.Array, chosen: Choices, count: int) -> tuple[jax.Array, jax.Array, Any]:
    """The last token that is kept, as its value and its id, and whether it is certainly among the first `count`."""
    V = scaled_BV.shape[-1]
    best_BC, ids_BC = jax.lax.top_k(scaled_BV, count)
    limit_B1 = jnp.where(chosen.top_k_B > 0, chosen.top_k_B, V)[:, None]
    top_p_B1 = chosen.top_p_B[:, None]
    inside_BC = jnp.arange(count) < limit_B1
    share_BC = jnp.where(inside_BC, jnp.exp(best_BC - best_BC[:, :1]), 0)
    all_B1 = jnp.sum(jnp.exp(scaled_BV - best_BC[:, :1]), axis=-1, keepdims=True)
    share_BC = share_BC / jnp.where(limit_B1 < V, jnp.sum(share_BC, axis=-1, keepdims=True), all_B1)
    before_BC = jnp.cumsum(share_BC, axis=-1) - share_BC
    size_B1 = jnp.sum(inside_BC & ((before_BC < top_p_B1) | (top_p_B1 == 1)), axis=-1, keepdims=True)
    counted_B, size_B = (chosen.top_k_B > 0) & (chosen.top_k_B <= count), size_B1[:, 0]
    summed_B = (chosen.top_k_B == 0) & ((size_B < count) | (chosen.top_p_B == 1))
    at = lambda x_BC: jnp.take_along_axis(x_BC, size_B1 - 1, axis=-1)[:, 0]
    return at(best_BC), at(ids_BC), counted_B | summed_B | (chosen.temperature_B == 0)
