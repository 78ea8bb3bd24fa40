"""AdamW from optax's own pieces, under AdaStar's schedule and width rule: what AdaStar is compared with."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pomona.model.spec import map_specs
from pomona.optim.adastar import width_multiplier
from pomona.optim.config import AdamW, Schedule
from pomona.optim.schedule import multiplier


def adamw(
    optimizer: AdamW, schedule: Schedule, total_steps: int, specs: Any, model_dim: int
) -> optax.GradientTransformation:
    """AdamW for one stage of `total_steps` steps.

    theta <- theta - schedule(t) * (lr * mu * adam + wd * theta), which is `optax.adamw` with weight decay wd
    / lr where no width multiplier applies. It skips no step: a gradient that is not finite makes the
    parameters so, and the loop stops there.
    """

    def learning_rates(updates: Any) -> Any:
        peak, base = schedule.peak_learning_rate, optimizer.mup_base_width
        return map_specs(lambda spec, u: peak * width_multiplier(spec, base, model_dim) * u, specs, updates)

    return optax.chain(
        optax.stateless(lambda updates, _: jax.tree.map(_at_least_float32, updates)),
        optax.clip_by_global_norm(optimizer.clip_norm),
        optax.scale_by_adam(optimizer.first_moment_decay, optimizer.second_moment_decay, optimizer.epsilon),
        optax.stateless(lambda updates, _: learning_rates(updates)),
        optax.add_decayed_weights(schedule.weight_decay),
        optax.scale_by_schedule(lambda count: -multiplier(schedule, jnp.asarray(count) + 1, total_steps)),
    )


def _at_least_float32(gradient: jax.Array) -> jax.Array:
    return gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
