"""The learning-rate multiplier: a pure function of the step inside its stage."""

import jax
import jax.numpy as jnp

from pomona.optim.config import Schedule


def multiplier(schedule: Schedule, total_steps: int, step: jax.Array | int) -> jax.Array:
    """In [0, 1] for update number `step` (the first is 1): `warmup_steps` updates rise linearly to 1, and the
    last one, number `total_steps`, is at the floor."""
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(step / max(schedule.warmup_steps, 1), 1.0)
    if schedule.shape == "constant":
        return warmup
    span = max(total_steps - schedule.warmup_steps, 1)
    progress = jnp.clip((step - schedule.warmup_steps) / span, 0.0, 1.0)
    return warmup * (schedule.floor + (1 - schedule.floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress)))
