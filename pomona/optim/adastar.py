"""AdaStar, the optimizer of the AFM report (section 3.2): RMSProp with momentum, clipped per block.

    skip the whole step if |g| is not finite or >= skip_norm
    g <- g * min(1, clip_norm / |g|)                      over all parameters
    v <- b2 v + (1 - b2) (g^2 + 1e-30)
    u <- g / sqrt(v / (1 - b2^t))                         no epsilon outside the root
    u <- u / max(1, RMS(u) / update_rms)                  per block: one layer's one tensor
    m <- b1 m + (1 - b1) u                                no bias correction
    theta <- theta - multiplier * (learning_rate * mu * m + weight_decay * theta)

Bytes moved per parameter, at best: read g twice, v twice, m, theta; write v, m, theta.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pomona.model.spec import Spec, map_specs
from pomona.optim.config import AdaStar, Schedule
from pomona.optim.schedule import multiplier

TINIEST = 1e-30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaStarState:
    """`second` and `momentum` are trees like the parameters, float32."""

    second: Any
    momentum: Any
    updates: jax.Array  # int32, applied updates of the whole life: the t of the bias correction
    stage_updates: jax.Array  # int32, applied updates of this stage: where the schedule is
    skipped: jax.Array  # int32, skipped steps of the whole life; reports only
    gradient_norm: jax.Array  # float32, of the last step, before clipping; reports only


def adastar(
    config: AdaStar, schedule: Schedule, total_steps: int, specs: Any, model_dim: int
) -> optax.GradientTransformation:
    """The transformation for parameters described by `specs`; `params` has to be given to `update`."""

    def init(params: Any) -> AdaStarState:
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), params)
        count = jnp.zeros((), jnp.int32)
        return AdaStarState(
            second=zeros,
            momentum=jax.tree.map(jnp.zeros_like, zeros),
            updates=count,
            stage_updates=count,
            skipped=count,
            gradient_norm=jnp.zeros((), jnp.float32),
        )

    def update(gradients: Any, state: AdaStarState, params: Any = None) -> tuple[Any, AdaStarState]:
        assert params is not None, "decoupled weight decay reads the parameters"
        norm = global_norm(gradients)
        ok = jnp.isfinite(norm) & (norm < config.skip_norm)
        step = ok.astype(jnp.int32)
        clip = jnp.where(ok, jnp.minimum(1.0, config.clip_norm / jnp.maximum(norm, TINIEST)), 0.0)
        debias = 1 - config.second_moment ** (state.updates + 1).astype(jnp.float32)
        rate = multiplier(schedule, total_steps, state.stage_updates + 1)

        def one(spec: Spec, gradient: jax.Array, second: jax.Array, momentum: jax.Array, param: jax.Array):
            g = jnp.where(ok, gradient.astype(jnp.float32) * clip, 0.0)  # where: NaN * 0 is NaN
            v = config.second_moment * second + (1 - config.second_moment) * (g * g + TINIEST)
            u = g * jax.lax.rsqrt(v / debias)
            axes = tuple(range(1 if spec.stacked else 0, u.ndim))
            rms = jnp.sqrt(jnp.mean(u * u, axis=axes, keepdims=True))
            u = u / jnp.maximum(1.0, rms / config.update_rms)
            m = config.momentum * momentum + (1 - config.momentum) * u
            scale = schedule.peak_learning_rate * width_multiplier(spec, model_dim, config.mup_base_width)
            change = -rate * (scale * m + schedule.weight_decay * param)
            return jnp.where(ok, change, 0.0), jnp.where(ok, v, second), jnp.where(ok, m, momentum)

        triples = map_specs(one, specs, gradients, state.second, state.momentum, params)
        change, second, momentum = (
            map_specs(lambda _, triple, part=part: triple[part], specs, triples) for part in range(3)
        )
        return change, AdaStarState(
            second=second,
            momentum=momentum,
            updates=state.updates + step,
            stage_updates=state.stage_updates + step,
            skipped=state.skipped + 1 - step,
            gradient_norm=norm,
        )

    return optax.GradientTransformation(init, update)


def global_norm(tree: Any) -> jax.Array:
    """The Euclidean norm over all leaves, float32 and the same on every device."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))


def width_multiplier(spec: Spec, model_dim: int, base_width: int) -> float:
    """muP in its simple form: linear layers learn at min(1, base / width), embeddings and norms at 1."""
    return min(1.0, base_width / model_dim) if spec.role == "linear" else 1.0
