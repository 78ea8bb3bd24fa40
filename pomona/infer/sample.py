"""From logits to the next token: greedy, temperature, top-k, top-p. Shapes: B sequences, V vocabulary."""

import jax
import jax.numpy as jnp

from pomona.model.sampling import Sampling


def sample(logits_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Token ids [B], int32. The filters apply in the usual order: temperature, then top-k, then top-p.

    top-p keeps the smallest set of most likely tokens that reaches it (Holtzman et al. 2020), one at least. Of equally
    likely tokens the lower id comes first, so that ties never widen a set.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV.astype(jnp.float32) / sampling.temperature
    if not sampling.top_k and sampling.top_p == 1:
        return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)
    V = logits_BV.shape[-1]
    best_BC, ids_BC = jax.lax.top_k(logits_BV, min(sampling.top_k or V, V))
    probabilities_BC = jax.nn.softmax(best_BC, axis=-1)
    before_BC = jnp.cumsum(probabilities_BC, axis=-1) - probabilities_BC
    best_BC = jnp.where((before_BC < sampling.top_p) | (sampling.top_p == 1), best_BC, -jnp.inf)
    choice_B1 = jax.random.categorical(key, best_BC, axis=-1)[:, None]
    return jnp.take_along_axis(ids_BC, choice_B1, axis=-1)[:, 0].astype(jnp.int32)
