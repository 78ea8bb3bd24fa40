"""AdaStar, the optimizer of the AFM report (section 3.2; afm-recipe section 5), as an optax transformation.

    skip the whole step if ||g|| is not finite or >= 100
    g     <- g * min(1, 1 / ||g||)                     over all parameters
    v     <- 0.95 v + 0.05 (g^2 + 1e-30)
    u     <- g / sqrt(v / (1 - 0.95^t))                v is bias-corrected, m is not
    u     <- u / max(1, RMS(u))                        per block: one layer's one tensor
    m     <- 0.95 m + 0.05 u
    theta <- theta - schedule(t) * (lr * mu * m + wd * theta)

A tensor of shape (layers, ...) stacks one block per layer.

Cost. Two reductions come before the last write, so the rule is three passes over memory: the norm reads g;
the second moment reads g and v, writes v, and sums the RMS on the way; the rest reads g, v, m, theta and
writes m and theta. That is 40 bytes a parameter in float32, where two moments without reductions need 28, and
no temporary: u is never stored. XLA:CPU does not write and sum in one loop; there it is 52 bytes.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pomona.model.spec import Spec, is_spec
from pomona.optim.config import AdaStar, Schedule
from pomona.optim.schedule import multiplier


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaStarState:
    """What AdaStar remembers. The moments are trees like the parameters; the counters are int32 scalars."""

    first_moment: Any  # m, float32
    second_moment: Any  # v, float32
    updates: jax.Array  # updates applied in all stages: t of the bias correction
    stage_updates: jax.Array  # updates applied in this stage: t of the schedule


def adastar(
    optimizer: AdaStar, schedule: Schedule, total_steps: int, specs: Any, model_dim: int
) -> optax.GradientTransformation:
    """AdaStar for one stage of `total_steps` steps.

    Args:
        specs: the parameters' `Spec`s; their roles choose the width multiplier and their stacking the blocks.
        model_dim: the model's width.

    Returns:
        A transformation whose `update` needs `params` and returns float32 updates to add to them. Gradients
        may be bfloat16. A skipped step returns updates and a state that change not one bit, counters
        included.
    """

    def init(params: Any) -> AdaStarState:
        zeros = lambda p: jnp.zeros_like(p, dtype=jnp.promote_types(p.dtype, jnp.float32))
        moments = jax.tree.map(zeros, params), jax.tree.map(zeros, params)
        return AdaStarState(*moments, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(gradients: Any, state: AdaStarState, params: Any = None) -> tuple[Any, AdaStarState]:
        norm = global_norm(gradients)
        applied = norm < optimizer.skip_norm  # False for NaN too
        clip = jnp.minimum(1.0, optimizer.clip_norm / norm)
        share = multiplier(schedule, state.stage_updates + 1.0, total_steps)
        # expm1, because 1 - 0.95^t cancels in float32 while t is small.
        debias = -jnp.expm1((state.updates + 1) * math.log(optimizer.second_moment_decay))
        scale = jnp.sqrt(debias) * clip

        def one(spec: Spec, p: jax.Array, g: jax.Array, m: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
            g = g.astype(v.dtype)
            v = jnp.where(applied, _second_moment(optimizer, g * clip, v), v)
            # u = scale * g / sqrt(v). Its mean square is summed as (g / v) * g, which shares no part with the
            # lines above and below: a shared part is stored by XLA:CPU, and the update takes twice as long.
            mean_square = jnp.mean((g / v) * g, axis=_block_axes(spec), keepdims=True)
            block = scale / jnp.maximum(1.0, scale * jnp.sqrt(mean_square) / optimizer.clip_block_rms)
            u = (g * block) * jax.lax.rsqrt(v)
            decay = optimizer.first_moment_decay
            m = jnp.where(applied, decay * m + (1 - decay) * u, m)
            rate = schedule.peak_learning_rate * width_multiplier(spec, optimizer.mup_base_width, model_dim)
            # Where the step is skipped, minus zero: x + -0.0 is x for every x, x + 0.0 is not for x = -0.0.
            change = jnp.where(applied, -share * (rate * m + schedule.weight_decay * p), -0.0)
            return change, m, v

        trees = (params, gradients, state.first_moment, state.second_moment)
        leaves = zip(jax.tree.leaves(specs, is_leaf=is_spec), *map(jax.tree.leaves, trees), strict=True)
        columns = zip(*(one(*leaf) for leaf in leaves))
        changes, first, second = (jax.tree.unflatten(jax.tree.structure(params), c) for c in columns)
        step = applied.astype(jnp.int32)
        return changes, AdaStarState(first, second, state.updates + step, state.stage_updates + step)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def global_norm(gradients: Any) -> jax.Array:
    """The Euclidean norm over all leaves, at least float32: a replicated scalar whatever the sharding."""
    wide = [g.astype(jnp.promote_types(g.dtype, jnp.float32)) for g in jax.tree.leaves(gradients)]
    return jnp.sqrt(sum(jnp.sum(g * g) for g in wide))


def width_multiplier(spec: Spec, base_width: int, model_dim: int) -> float:
    """mu of afm-recipe section 5 ("muP simple"): linear layers of models wider than the base learn slower."""
    return min(1.0, base_width / model_dim) if spec.role == "linear" else 1.0


def _second_moment(optimizer: AdaStar, g: jax.Array, v: jax.Array) -> jax.Array:
    decay = optimizer.second_moment_decay
    return decay * v + (1 - decay) * (g * g + optimizer.squared_gradient_epsilon)


def _block_axes(spec: Spec) -> tuple[int, ...]:
    return tuple(range(int(spec.stacked), len(spec.shape)))
