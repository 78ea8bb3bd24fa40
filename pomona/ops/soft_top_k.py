"""Soft-Top-K: a mask over units that sums to a budget exactly, and that has a gradient (Lei et al. 2023, "Conditional
Adapters", section 3.2; afm-recipe section 6).

    mask_i = min(1, exp((s_i + a) / eps)),   a such that sum_i mask_i = k

With the m highest scores at one, the others share k - m as a softmax shares one:

    mask_i = (k - m) * exp(s_i / eps) / sum_{j not among the m} exp(s_j / eps)

and m is the smallest number for which no share is above one. One sort finds it; nothing is iterated, so the budget is
kept at every temperature, down to the hard mask at eps = 0. The derivative of this formula is that of the constrained
mask: m is locally constant.

Shapes: L layers (any number of dimensions), F units.
"""

import jax
import jax.numpy as jnp

FAR = 200.0
"""In units of the temperature: e to minus this is zero in float32."""

COLDEST = 1e-30
"""A temperature of zero is this one, whose inverse is still a float32."""


def soft_top_k(scores_LF: jax.Array, budget: jax.Array | float, temperature: jax.Array | float) -> jax.Array:
    """The mask of the scores of each layer, float32 [L, F], in (0, 1], with the sum `budget` in each.

    Args:
        budget: 0 < k <= F, not necessarily whole, possibly traced.
        temperature: eps >= 0, in the scores' own unit, possibly traced. At zero the mask is hard; equal scores at its
            edge share what is left.

    Returns:
        The mask. It can be differentiated in all three arguments, in each where the mask is differentiable.
    """
    scores_LF = scores_LF.astype(jnp.float32)
    budget = jnp.asarray(budget, jnp.float32)
    # Measured from the score that the budget ends at: there the mask changes, and there a difference is exact. This
    # unit is never at one together with all before it, and the threshold is at most log F temperatures above it.
    sorted_LF = -jnp.sort(-jax.lax.stop_gradient(scores_LF), axis=-1)
    last = jnp.clip(jnp.ceil(budget).astype(jnp.int32) - 1, 0, scores_LF.shape[-1] - 1)
    edge_L1 = jnp.take(sorted_LF, last, axis=-1)[..., None]
    reach = lambda x_LF: jnp.clip((x_LF - edge_L1) / jnp.maximum(temperature, COLDEST), -FAR, FAR)

    whole_L1 = _num_whole(jax.lax.stop_gradient(reach(sorted_LF)), jax.lax.stop_gradient(budget))
    is_whole_LF = ranks(scores_LF) < whole_L1
    share_LF = jax.nn.softmax(jnp.where(is_whole_LF, -jnp.inf, reach(scores_LF)), axis=-1)
    return jnp.where(is_whole_LF, 1.0, jnp.minimum((budget - whole_L1) * share_LF, 1.0))


def ranks(scores_LF: jax.Array) -> jax.Array:
    """The place of every unit in its layer, int32 [L, F], 0 for the highest score; of equal ones the first goes first.
    The hard mask of a budget of K units is `ranks(scores) < K`."""
    order_LF = jnp.argsort(-scores_LF, axis=-1, stable=True)
    return jnp.argsort(order_LF, axis=-1).astype(jnp.int32)


def _num_whole(sorted_LF: jax.Array, budget: jax.Array) -> jax.Array:
    """m of each layer, [L, 1], from its scores over the temperature, highest first.

    With m units at one the next would have (k - m) * exp(x) / sum(exp(x), from it on): where this is above one, and
    more than one is left to share, it has to be at one too. These are the first so many, hence a count.
    """
    rest_LF = jax.lax.cumlogsumexp(sorted_LF, axis=sorted_LF.ndim - 1, reverse=True)
    left_F = budget - jnp.arange(sorted_LF.shape[-1])
    too_much_LF = (left_F > 1) & (sorted_LF - rest_LF + jnp.log(jnp.maximum(left_F, 1)) > 0)
    return jnp.sum(too_much_LF, axis=-1, keepdims=True)
